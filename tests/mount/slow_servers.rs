//! Servers that are never silent and never done, and names that no longer lead to one.

use std::time::Duration;

use kvfs::apify::http::HttpOptions;

use crate::sandbox::Sandbox;
use crate::support::mounted::{
    MountedSession, Running, eventually, pattern, quick_retries, scripted, scripted_keys,
    scripted_path,
};
use crate::support::scripted::{Answer, ScriptedServer, Seen};

const DEADLINE: Duration = Duration::from_secs(3);
/// What a busy machine may add to it: far less than the answers would take.
const BUSY: Duration = Duration::from_secs(20);
/// Less than the silence that ends an attempt, so that only the deadline can end it.
const PAUSE: Duration = Duration::from_millis(500);
/// Programs that wait at a time: more than there are threads that take the kernel's requests.
const WAITING: usize = 6;
/// A busy machine may hold others up until then, but not each time.
const TRIES: usize = 5;

fn mounted(
    answer: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
) -> (ScriptedServer, MountedSession) {
    let server = scripted(move |seen, _| {
        if seen.path() == scripted_path("good") {
            Answer::new(200, "hello")
        } else {
            answer(seen)
        }
    });
    let options = HttpOptions {
        attempt_timeout: Duration::from_secs(60),
        ..quick_retries()
    };
    let mount = MountedSession::scripted(&server, options, |config| config.deadline = DEADLINE);
    (server, mount)
}

/// Checks that commands fail within the deadline, that others go on meanwhile, and that nobody goes
/// on waiting for so many answers that are not wanted any more.
#[track_caller]
fn fail_in_time(
    (server, mount): &(ScriptedServer, MountedSession),
    command: impl Fn(usize) -> String,
    answers: usize,
) {
    assert_eq!(mount.works("cat good"), "hello");
    let mut tries = 0;
    let mut held_up = true;
    while held_up {
        assert!(tries < TRIES, "others are held up");
        tries += 1;
        let mut waiting: Vec<_> = (0..WAITING)
            .map(|n| {
                let command = command(n);
                let waits = mount.start_sh(&format!("exec {command} > /dev/null"));
                (command, waits)
            })
            .collect();
        let other = mount.sh("cat good; stat good > /dev/null");
        assert!(other.status.success(), "{other:?}");
        held_up = !waiting.iter_mut().all(|(_, waits)| waits.is_running());
        for (command, waits) in waiting {
            let output = waits.wait(DEADLINE + BUSY);
            assert!(!output.status.success(), "{command}: {output:?}");
            assert!(output.took > DEADLINE / 2, "{command}: {output:?}");
        }
    }
    let errors = mount.counters().last_errors;
    assert!(!errors.is_empty(), "nothing is told");
    server.wait_until_closed(tries * answers);
}

fn keys_and(large: u64) -> Answer {
    let keys: Vec<_> = (0..WAITING).map(|n| format!("k{n}")).collect();
    let slow = keys.iter().map(|key| (key.as_str(), large));
    scripted_keys(&[("good", 5)].into_iter().chain(slow).collect::<Vec<_>>())
}

#[test]
fn an_answer_that_comes_byte_by_byte_ends_with_the_deadline() {
    let answer = Answer::new(200, [b'x'; 100]);
    for slow in [answer.clone().trickle(PAUSE), answer.trickle_body(PAUSE)] {
        let mounted = mounted(move |seen| {
            if seen.path().ends_with("/keys") {
                keys_and(100)
            } else {
                slow.clone()
            }
        });
        fail_in_time(&mounted, |n| format!("cat k{n}"), WAITING);
    }
}

#[test]
fn a_listing_that_comes_byte_by_byte_ends_with_the_deadline() {
    for slow in [
        keys_and(100).trickle(PAUSE),
        keys_and(100).trickle_body(PAUSE),
    ] {
        let mounted = mounted(move |_| slow.clone());
        // All of them wait for the same one.
        fail_in_time(&mounted, |_| "ls".to_owned(), 1);
    }
}

/// Once the head of a large record has come, its bytes follow: each read ends, not the whole.
#[test]
fn a_large_record_that_comes_byte_by_byte_ends_with_the_deadline() {
    let content = pattern(3 << 20);
    let mounted = mounted(move |seen| {
        if seen.path().ends_with("/keys") {
            keys_and(3 << 20)
        } else {
            Answer::new(200, content.clone()).trickle(Duration::from_millis(5))
        }
    });
    fail_in_time(&mounted, |n| format!("cat k{n}"), WAITING);
}

/// Starts a program that waits for a record of which the server says nothing; returns once it was
/// asked for.
fn waiting_for_silent(mounted: &(ScriptedServer, MountedSession)) -> Running {
    let (server, mount) = mounted;
    let asked = |seen: &Seen| seen.path() == scripted_path("silent");
    let before = server.seen().iter().filter(|seen| asked(seen)).count();
    let waits = mount.start_sh("exec cat silent");
    eventually("the record is asked for", || {
        server.seen().iter().filter(|seen| asked(seen)).count() > before
    });
    waits
}

/// The kernel's lookup of the name waits; so would a listing with that name, if it went unanswered.
#[test]
fn a_record_that_never_comes_holds_up_no_listing_with_its_name() {
    let server = scripted(|seen, _| match seen.path() {
        path if path.ends_with("/keys") => scripted_keys(&[("good", 5), ("silent", 7)]),
        _ => Answer::silence(),
    });
    let options = HttpOptions {
        attempt_timeout: Duration::from_secs(60),
        ..quick_retries()
    };
    let mount = MountedSession::scripted(&server, options, |_| {});
    let mounted = (server, mount);
    let mut waits = waiting_for_silent(&mounted);
    let listed = mounted.1.works("ls; stat -c %s silent");
    assert_eq!(listed, "good\nsilent\n7");
    assert!(waits.is_running(), "the listing came after its deadline");
}

/// The kernel lets a second program wait for the lookup of the first.
#[test]
fn a_second_program_that_waits_for_a_record_has_one_deadline_too() {
    let deadline = Duration::from_secs(6);
    let server = scripted(|_, _| Answer::silence());
    let options = HttpOptions {
        attempt_timeout: Duration::from_secs(60),
        ..quick_retries()
    };
    let mount = MountedSession::scripted(&server, options, |config| config.deadline = deadline);
    let mounted = (server, mount);
    let mut took = Vec::new();
    for _ in 0..TRIES {
        let first = waiting_for_silent(&mounted);
        let later = [(); 3].map(|()| mounted.1.start_sh("exec cat silent"));
        assert!(!first.wait(deadline + BUSY).status.success());
        let ended = later.map(|later| later.wait(deadline * 4 + BUSY));
        assert!(ended.iter().all(|ended| !ended.status.success()));
        let longest = ended.iter().map(|ended| ended.took).max();
        took.extend(longest);
        if longest < Some(deadline * 3 / 2) {
            return;
        }
    }
    panic!("a deadline of {deadline:?}, and it took {took:?}");
}

/// The server's name is no longer known, as when a laptop changes networks; its resolver refuses
/// or says nothing. In a network of its own, so that both can be had.
#[test]
fn a_name_that_leads_nowhere_is_an_error_in_time_and_is_found_again() {
    let script = r#"
ip link set lo up
printf 'nameserver 127.0.0.1\noptions timeout:30 attempts:5\n' > resolv.conf; mount --bind resolv.conf /etc/resolv.conf
echo '127.0.0.1 localhost store.test' > known; echo '127.0.0.1 localhost' > unknown
cp known hosts; mount --bind hosts /etc/hosts
mkdir -p storage/key_value_stores/default
for name in a b c d; do echo $name > storage/key_value_stores/default/$name.txt; done
serve() {
    KVFS_SERVE_TOKEN=t $KVFS serve storage --listen 127.0.0.1:8010 2> serve.log & server=$!
    until grep -q 127.0.0.1:8010 serve.log; do sleep 0.05; done
}
serve
export APIFY_TOKEN=t APIFY_CLIENT_BASE_URL=http://store.test:8010 KVFS_INSECURE_HTTP=1
# A machine that stands still for longer than the deadline makes anything fail.
works() { until "$@"; do sleep 0.1; done; }
works $KVFS mount --timeout 1s --deadline 3s --ttl 1h ~default mnt
works ls mnt; works cat mnt/a
away() {
    cat unknown > hosts
    # Connections that are open need no name.
    kill $server; wait $server || true; serve
    begun=$(date +%s%N)
    if cat mnt/$1; then echo found; exit 1; fi
    echo "took $((($(date +%s%N) - begun) / 1000000)) ms"
    ls mnt > /dev/null; cat mnt/a
    cat known > hosts
    works cat mnt/$1
}
away b
# Takes questions and never answers.
python3 -c "
import socket, time
resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
resolver.bind(('127.0.0.1', 53))
open('listens', 'w')
time.sleep(100)" &
until [ -e listens ]; do sleep 0.05; done
away c
$KVFS unmount mnt
"#;
    let sandbox = Sandbox::prepared("");
    let script = format!("exec unshare --net sh -e <<'SCRIPT'\n{script}\nSCRIPT\n");
    let (worked, said) = sandbox.as_root(&script);
    assert!(worked, "{said}");
    let took: Vec<u64> = said
        .lines()
        .filter_map(|line| {
            line.strip_prefix("took ")?
                .strip_suffix(" ms")?
                .parse()
                .ok()
        })
        .collect();
    assert_eq!(took.len(), 2, "{said}");
    for took in took.into_iter().map(Duration::from_millis) {
        assert!(took < DEADLINE + BUSY, "{said}");
    }
    assert!(!said.contains("found"), "{said}");
}
