use proptest::prelude::*;

use super::*;

const ID: &str = "WkzbQMuFYuamGv3YF";

#[test]
fn stores_in_buckets_follow_bucket_and_prefix() {
    for (text, bucket, name) in [
        ("s3://bucket/results", "s3://bucket", "results"),
        ("s3://bucket/a/b/results/", "s3://bucket/a/b", "results"),
        ("GS://bucket/results", "gs://bucket", "results"),
        ("az://container/p/x-1", "az://container/p", "x-1"),
    ] {
        let StoreRef::Bucket { address, store } = parse(text) else {
            panic!("{text}");
        };
        assert_eq!(address.as_str(), bucket, "{text}");
        assert_eq!(store, name, "{text}");
        let shown = StoreRef::Bucket { address, store };
        assert_eq!(parse(&shown.to_string()), shown);
    }
    for wrong in [
        "s3://bucket",
        "s3://bucket/",
        "s3:///results",
        "s3://user:password@bucket/x",
        "s3://bucket/x?y=z",
        "az://account@container/x",
    ] {
        let error = wrong.parse::<StoreRef>().expect_err(wrong).to_string();
        assert!(!error.contains("password@"), "{error}");
    }
}

fn parse(text: &str) -> StoreRef {
    text.parse().expect(text)
}

fn refused(text: &str) -> String {
    text.parse::<StoreRef>().expect_err(text).to_string()
}

fn id() -> RemoteRef {
    RemoteRef::Id(ID.into())
}

fn name(user: Option<&str>, name: &str) -> RemoteRef {
    RemoteRef::Named {
        user: user.map(str::to_owned),
        name: name.into(),
    }
}

#[test]
fn words_name_stores_of_the_platform() {
    for (text, remote) in [
        (ID, id()),
        ("me~my-store", name(Some("me"), "my-store")),
        ("me/my-store", name(Some("me"), "my-store")),
        ("~my-store", name(None, "my-store")),
        (
            "run:HG7ML7M8z78YcAPEB",
            RemoteRef::Run("HG7ML7M8z78YcAPEB".into()),
        ),
        (
            "actor:apify~web-scraper",
            RemoteRef::LastRunOfActor("apify~web-scraper".into()),
        ),
        (
            "actor:apify/web-scraper",
            RemoteRef::LastRunOfActor("apify~web-scraper".into()),
        ),
        (
            "actor:moJRLRc85AitArpNN",
            RemoteRef::LastRunOfActor("moJRLRc85AitArpNN".into()),
        ),
        ("task:me~t", RemoteRef::LastRunOfTask("me~t".into())),
    ] {
        assert_eq!(parse(text), StoreRef::Remote(remote), "{text}");
    }
}

#[test]
fn api_urls_name_a_server_and_a_store() {
    for (text, base, remote, signature) in [
        (
            "https://api.apify.com/v2/key-value-stores/WkzbQMuFYuamGv3YF",
            "https://api.apify.com/",
            id(),
            None,
        ),
        (
            "HTTP://127.0.0.1:8080/a/b/v2/key-value-stores/me%2Fs/keys/?limit=5&signature=MC4w%3D",
            "http://127.0.0.1:8080/a/b/",
            name(Some("me"), "s"),
            Some("MC4w="),
        ),
        (
            "https://h/v2/actor-runs/R1/key-value-store/keys",
            "https://h/",
            RemoteRef::Run("R1".into()),
            None,
        ),
        (
            "https://h/v2/acts/me~a/runs/last/key-value-store?token_type=x",
            "https://h/",
            RemoteRef::LastRunOfActor("me~a".into()),
            None,
        ),
        (
            "https://h/v2/actor-tasks/T/runs/last/key-value-store#top",
            "https://h/",
            RemoteRef::LastRunOfTask("T".into()),
            None,
        ),
    ] {
        let expected = StoreRef::Url {
            base: Url::parse(base).expect("a URL"),
            remote,
            signature: signature.map(Secret::new),
        };
        assert_eq!(parse(text), expected, "{text}");
        assert!(!parse(text).to_string().contains("MC4w"));
    }
}

#[test]
fn console_urls_name_what_they_show() {
    for text in [
        "https://console.apify.com/storage/key-value-stores/WkzbQMuFYuamGv3YF",
        "https://console.apify.com/organization/X1/storage/key-value-stores/WkzbQMuFYuamGv3YF/settings?x=1#y",
    ] {
        assert_eq!(parse(text), StoreRef::Remote(id()), "{text}");
    }
    for text in [
        "https://console.apify.com/actors/A1/runs/R1#output",
        "https://console.apify.com/organization/O/actors/runs/R1",
        "https://console.apify.com/view/runs/R1",
    ] {
        assert_eq!(
            parse(text),
            StoreRef::Remote(RemoteRef::Run("R1".into())),
            "{text}"
        );
    }
    refused("https://console.apify.com/storage/datasets/WkzbQMuFYuamGv3YF");
}

#[test]
fn record_urls_are_exactly_these_records() {
    let first = "https://h/v2/key-value-stores/me~s/records/a%2Fb?signature=s3cret";
    let second = "https://h/v2/actor-runs/R/key-value-store/records/OUTPUT";
    let StoreRef::Records(urls) = StoreRef::parse(&[first.into(), second.into()]).expect("records")
    else {
        panic!("not records");
    };
    assert_eq!(urls[0].expose().as_str(), first);
    assert_eq!(urls.len(), 2);
    assert_eq!(StoreRef::Records(urls).to_string(), "2 records of h");
    assert_eq!(
        parse(first).to_string(),
        "https://h/v2/key-value-stores/me~s/records/a%2Fb"
    );
    let error = StoreRef::parse(&[first.into(), ID.into()]).expect_err("mixed");
    assert!(error.to_string().contains(ID), "{error}");
    assert_eq!(StoreRef::parse(&[]), Err(ReferenceError::Missing));
}

#[test]
fn paths_name_folders() {
    for text in [
        "/",
        "/a",
        "./a",
        "../a",
        ".",
        "..",
        "storage/key_value_stores/default",
    ] {
        assert_eq!(parse(text), StoreRef::Directory(text.into()));
    }
    assert_eq!(
        parse("file:///tmp/a%20b"),
        StoreRef::Directory("/tmp/a b".into())
    );
    assert!(refused("file:///tmp/%ff").contains("not UTF-8"));
}

#[test]
fn a_bare_word_is_an_id_and_explained_when_the_platform_has_no_such() {
    let StoreRef::Remote(remote) = parse("my-store") else {
        panic!("not remote")
    };
    assert_eq!(remote, RemoteRef::Id("my-store".into()));
    let explained = remote.mistaken_id().expect("no id of the platform's");
    for part in ["~my-store", "./my-store", "run:ID", "Console"] {
        assert!(explained.contains(part), "{explained}");
    }
    assert_eq!(RemoteRef::Id(ID.into()).mistaken_id(), None);
}

#[test]
fn what_fits_no_form_is_refused() {
    for text in [
        "",
        "a b",
        "~",
        "me~",
        "a~b~c",
        "run:",
        "actor:",
        "ftp://h/v2",
        "~/x/y/z",
    ] {
        refused(text);
    }
}

#[test]
fn secrets_in_refused_urls_are_not_shown() {
    for text in [
        "https://h/v2/key-value-stores/a?token=s3cret",
        "https://u:s3cret@h/v2/key-value-stores/a",
        "https://h/v2/datasets/a?signature=s3cret",
        "https://h/v2/key-value-stores/a/records/a/b?signature=s3cret",
        "https://h:x/?signature=s3cret",
        "foo?signature=s3cret",
    ] {
        let error = refused(text);
        assert!(!error.contains("s3cret"), "{error}");
    }
}

fn words() -> impl Strategy<Value = String> {
    "[A-Za-z0-9][A-Za-z0-9_.-]{0,20}"
}

proptest! {
    #[test]
    fn what_is_shown_reads_back_the_same(user in words(), name in words(), kind in 0..7) {
        let remote = match kind {
            0 => RemoteRef::Id(format!("{:0<17.17}", name.replace(['_', '.', '-'], "x"))),
            1 => RemoteRef::Named { user: None, name },
            2 => RemoteRef::Named { user: Some(user), name },
            3 => RemoteRef::Run(name),
            4 => RemoteRef::LastRunOfActor(format!("{user}~{name}")),
            5 => RemoteRef::LastRunOfActor(name),
            _ => RemoteRef::LastRunOfTask(format!("{user}~{name}")),
        };
        let reference = StoreRef::Remote(remote.clone());
        prop_assert_eq!(&parse(&reference.to_string()), &reference);
        let base = Url::parse("http://127.0.0.1:9/deep/").expect("a URL");
        let reference = StoreRef::Url { base, remote, signature: None };
        prop_assert_eq!(&parse(&reference.to_string()), &reference);
    }

    #[test]
    fn folders_read_back_the_same(path in "(/|\\./|\\.\\./)[a-z ~:?]{0,9}(/[a-z]{0,4}){0,3}") {
        prop_assert_eq!(parse(&path), StoreRef::Directory(path.clone().into()));
        prop_assert_eq!(parse(&path).to_string(), path);
    }

    #[test]
    fn nothing_that_is_typed_panics(text in ".{0,60}") {
        let _ = text.parse::<StoreRef>();
    }

    #[test]
    fn no_url_panics(rest in "[/a-z0-9~%?=&.:@#2v-]{0,50}") {
        let _ = format!("http://h/{rest}").parse::<StoreRef>();
        let _ = format!("http://{rest}").parse::<StoreRef>();
        let _ = format!("https://h/v2/key-value-stores/{rest}").parse::<StoreRef>();
    }
}
