//! TLS and proxies: whom kvfs trusts, and by which way it goes there.

use std::fs;
use std::process::Output;

use serde_json::Value;

use super::daemon::{User, soon};
use crate::support::served::{STORE, TOKEN, TestServer};
use crate::support::tls::{Authority, Proxy, TlsRelay};

/// A server behind TLS, and a user who knows its authority.
struct Secured {
    server: TestServer,
    authority: Authority,
    relay: TlsRelay,
    user: User,
}

impl Secured {
    fn new(names: &[&str]) -> Self {
        let (server, user, authority) = (TestServer::start(), User::new(), Authority::new());
        server.put_text("a", "over TLS");
        server.put_text("b", "never read before");
        authority.write(&user.path("authority.pem"));
        let port = server
            .url()
            .rsplit(':')
            .next()
            .and_then(|port| port.parse().ok());
        let relay = TlsRelay::start(port.expect("a port"), authority.server(names));
        Self {
            server,
            authority,
            relay,
            user,
        }
    }

    /// Runs kvfs against `host`; it trusts the authority in this file.
    fn kvfs(
        &self,
        host: &str,
        trusted: Option<&str>,
        more: &[(&str, &str)],
        args: &[&str],
    ) -> Output {
        let mut command = self.user.command(args);
        command
            .env("APIFY_TOKEN", TOKEN)
            .env(
                "APIFY_CLIENT_BASE_URL",
                format!("https://{host}:{}", self.relay.port()),
            )
            .envs(trusted.map(|file| ("SSL_CERT_FILE", file)))
            .envs(more.iter().copied());
        command.output().expect("kvfs runs")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[track_caller]
fn works(output: &Output) -> String {
    assert!(output.status.success(), "{}", said(output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn is_not_trusted(output: &Output) {
    let said = said(output);
    assert!(!output.status.success(), "{said}");
    for expected in ["certificate", "--api-url", "SSL_CERT_FILE"] {
        assert!(said.contains(expected), "no '{expected}' in {said}");
    }
}

#[test]
fn a_server_is_trusted_by_its_authority_and_its_name_and_tokens_go_to_no_other() {
    let secured = Secured::new(&["localhost"]);
    let store = format!("~{STORE}");
    let list = ["ls", store.as_str()];
    let trusted = Some("authority.pem");
    // An authority that only the server knows.
    is_not_trusted(&secured.kvfs("localhost", None, &[], &list));
    is_not_trusted(&secured.kvfs("localhost", None, &[], &["mount", &store, "mnt"]));
    assert!(secured.user.nothing_left());
    let another = Authority::new();
    another.write(&secured.user.path("another.pem"));
    is_not_trusted(&secured.kvfs("localhost", Some("another.pem"), &[], &list));
    // The right one, under a name that it has not signed.
    is_not_trusted(&secured.kvfs("127.0.0.1", trusted, &[], &list));
    let counts = secured.server.counts();
    assert_eq!((counts.other, counts.list), (0, 0), "something was sent");
    assert_eq!(
        works(&secured.kvfs("localhost", trusted, &[], &list)),
        "a\nb\n"
    );
}

#[test]
fn a_mount_over_tls_that_meets_an_unknown_certificate_says_so_and_recovers() {
    let secured = Secured::new(&["localhost"]);
    let store = format!("~{STORE}");
    // A path that counts from where the command was typed, not from where its daemon is.
    let mount = ["mount", "--ttl", "0", &store, "mnt"];
    works(&secured.kvfs("localhost", Some("authority.pem"), &[], &mount));
    let file = |name: &str| secured.user.path("mnt").join(name);
    assert_eq!(fs::read_to_string(file("a")).expect("it"), "over TLS");

    let before = secured.server.counts();
    secured.relay.show(Authority::new().server(&["localhost"]));
    let error = fs::read(file("b")).expect_err("somebody else answers");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    secured
        .relay
        .show(secured.authority.server(&["elsewhere.example"]));
    let error = fs::read(file("b")).expect_err("another server answers");
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{error}");
    let now = secured.server.counts();
    assert_eq!(
        (before.get, before.head),
        (now.get, now.head),
        "something was sent"
    );
    let status = &secured.user.status()[0];
    let errors = status["stats"]["last_errors"].to_string();
    let log = status["log_file"].as_str().map(fs::read_to_string);
    let log = log.expect("a log").expect("a file");
    for text in [errors, log] {
        for expected in ["invalid peer certificate", "SSL_CERT_FILE"] {
            assert!(text.contains(expected), "no '{expected}' in {text}");
        }
        assert!(!text.contains(TOKEN), "{text}");
    }

    secured.relay.show(secured.authority.server(&["localhost"]));
    assert_eq!(
        fs::read_to_string(file("b")).expect("it"),
        "never read before"
    );
    secured.user.works(&["unmount", "mnt"]);
    soon(|| secured.user.nothing_left());
}

#[test]
fn proxies_of_the_environment_are_used_but_for_what_they_are_not_for() {
    let secured = Secured::new(&["kvfs.example", "0.0.0.0"]);
    let store = format!("~{STORE}");
    let port = secured.relay.port();
    let trusted = Some("authority.pem");
    let list = ["ls", store.as_str()];
    // No name server knows it: only the proxy leads there.
    for variable in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let proxy = Proxy::start(port);
        let variables = [(variable, proxy.url())];
        let variables = variables
            .each_ref()
            .map(|(name, url)| (*name, url.as_str()));
        let listed = secured.kvfs("kvfs.example", trusted, &variables, &list);
        assert_eq!(works(&listed), "a\nb\n", "{variable}");
        let asked = proxy.asked();
        let expected = format!("CONNECT kvfs.example:{port} HTTP/1.1");
        assert!(
            !asked.is_empty() && asked.iter().all(|line| *line == expected),
            "{asked:?}"
        );
    }
    let proxy = Proxy::start(port);
    let url = proxy.url();
    for (name, value) in [("NO_PROXY", "0.0.0.0"), ("no_proxy", "example.com,0.0.0.0")] {
        let variables = [("HTTPS_PROXY", url.as_str()), (name, value)];
        let listed = secured.kvfs("0.0.0.0", trusted, &variables, &list);
        assert_eq!(works(&listed), "a\nb\n");
    }
    // What is for http:// only.
    let variables = [("HTTP_PROXY", url.as_str())];
    works(&secured.kvfs("0.0.0.0", trusted, &variables, &list));
    assert_eq!(proxy.asked(), [""; 0]);

    // The daemon of a mount, too; and a proxy sees what is not encrypted only if that is allowed.
    let plain = secured.server.url().replace("127.0.0.1", "0.0.0.0");
    let server = plain.rsplit(':').next().and_then(|port| port.parse().ok());
    let proxy = Proxy::start(server.expect("a port"));
    let url = proxy.url();
    let variables = [("HTTP_PROXY", url.as_str()), ("http_proxy", url.as_str())];
    let mount = ["mount", "--api-url", &plain, &store, "mnt"];
    let refused = secured.kvfs("0.0.0.0", None, &variables, &mount);
    assert!(!refused.status.success());
    assert!(
        said(&refused).contains("--insecure-http"),
        "{}",
        said(&refused)
    );
    assert_eq!(proxy.asked(), [""; 0]);
    let allowed = [&mount[..], &["--insecure-http"]].concat();
    works(&secured.kvfs("0.0.0.0", None, &variables, &allowed));
    let read = fs::read_to_string(secured.user.path("mnt/a")).expect("a record");
    assert_eq!(read, "over TLS");
    assert!(
        proxy
            .asked()
            .iter()
            .any(|line| line.starts_with(&format!("GET {plain}")))
    );
    secured.user.works(&["unmount", "mnt"]);
}

/// What `kvfs doctor` says of a server that is not trusted: the same, as a fix.
#[test]
fn the_doctor_explains_a_certificate_that_is_not_trusted() {
    let secured = Secured::new(&["localhost"]);
    let doctor = secured.kvfs("localhost", None, &[], &["doctor", "--json"]);
    assert_eq!(doctor.status.code(), Some(3), "{}", said(&doctor));
    let report: Value = serde_json::from_slice(&doctor.stdout).expect("JSON");
    let checks = report["checks"].as_array().expect("checks");
    let api = checks
        .iter()
        .find(|check| check["check"] == "api")
        .expect("it");
    assert!(api["fix"].to_string().contains("SSL_CERT_FILE"), "{api}");
}
