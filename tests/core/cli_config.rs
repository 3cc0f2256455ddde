//! The settings file: what counts, where it comes from, and named stores.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use serde_json::Value;

use crate::cli::{Ran, User, ran};
use crate::support::served::{STORE, TOKEN, TestServer};

fn write(user: &User, mode: u32, text: &str) {
    let path = user.path(".config/kvfs/config.toml");
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
}

fn kvfs(user: &User, variables: &[(&str, &str)], args: &[&str]) -> Ran {
    let mut command = user.kvfs();
    command.args(args).envs(variables.iter().copied());
    ran(command.output().expect("kvfs runs"))
}

fn settings(user: &User, variables: &[(&str, &str)], args: &[&str]) -> Value {
    let ran = kvfs(user, variables, &[&["config", "--json"], args].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    serde_json::from_str(&ran.out).expect("JSON")
}

fn comes(settings: &Value, name: &str) -> (String, String) {
    let setting = &settings["settings"][name];
    let text = |field: &str| setting[field].as_str().unwrap_or("none").to_owned();
    (text("value"), text("from"))
}

#[track_caller]
fn is(settings: &Value, name: &str, value: &str, from: &str) {
    assert_eq!(comes(settings, name), (value.into(), from.into()), "{name}");
}

#[test]
fn every_setting_is_shown_with_where_it_comes_from() {
    let user = User::new();
    let shown = settings(&user, &[], &[]);
    assert_eq!(shown["found"], false);
    is(&shown, "ttl", "10s", "default");
    is(&shown, "cache-size", "2GiB", "default");
    is(&shown, "api-url", "https://api.apify.com", "default");
    is(&shown, "token", "none", "none");
    write(
        &user,
        0o644,
        "[defaults]\nttl = '1m'\nraw = true\napi-url = 'http://file'\n\
         [stores.prod]\nstore = 'me~s'\nraw = false\nimmutable = true\napi-url = 'http://prod'\n",
    );
    let shown = settings(&user, &[], &[]);
    is(&shown, "ttl", "1m", "[defaults]");
    is(&shown, "raw", "true", "[defaults]");
    is(&shown, "api-url", "http://file/", "[defaults]");
    assert_eq!(shown["stores"]["prod"], "me~s");

    // The environment comes before defaults, and after a store that is named.
    let variables = [
        ("APIFY_CLIENT_BASE_URL", "http://env"),
        ("APIFY_TOKEN", "s3cret"),
    ];
    let shown = settings(&user, &variables, &[]);
    is(&shown, "api-url", "http://env/", "APIFY_CLIENT_BASE_URL");
    is(&shown, "token", "(hidden)", "APIFY_TOKEN");
    let unencrypted = settings(&user, &[("KVFS_INSECURE_HTTP", "1")], &[]);
    is(&unencrypted, "insecure-http", "true", "KVFS_INSECURE_HTTP");
    is(&shown, "insecure-http", "false", "default");
    let shown = settings(&user, &variables, &["@prod"]);
    is(&shown, "store", "me~s", "[stores.prod]");
    is(&shown, "api-url", "http://prod/", "[stores.prod]");
    is(&shown, "raw", "false", "[stores.prod]");
    is(&shown, "immutable", "true", "[stores.prod]");
    // What excludes a nearer setting does not count.
    is(&shown, "ttl", "10s", "default");

    let table = kvfs(&user, &variables, &["config"]);
    assert!(table.out.contains("@prod: me~s"), "{table:?}");
    assert!(!table.out.contains("s3cret"), "{table:?}");
    // Only paths may need more.
    let path = user.path("").display().to_string();
    for line in table.out.lines().filter(|line| !line.contains(&path)) {
        assert!(line.chars().count() <= 80, "{line}");
    }
}

#[test]
fn a_named_store_is_used_by_every_command() {
    let (server, user) = (TestServer::start(), User::new());
    let file = format!(
        "[stores.test]\nstore = '~{STORE}'\napi-url = '{}'\ntoken-file = 'token'\n",
        server.url()
    );
    write(&user, 0o644, &file);
    fs::write(user.path(".config/kvfs/token"), TOKEN).expect("a token");
    // Another account's token does not matter.
    let run = |args: &[&str]| kvfs(&user, &[("APIFY_TOKEN", "other")], args);
    fs::write(user.path("a.txt"), "hello").expect("a file");
    for (args, expected) in [
        (&["put", "@test", "a", "a.txt", "-q"][..], ""),
        (&["cat", "@test", "a"], "hello"),
        (&["ls", "@test"], "a\n"),
        (&["rm", "-q", "@test", "a"], ""),
        (&["ls", "@test"], ""),
    ] {
        let ran = run(args);
        assert_eq!((ran.code, ran.out.as_str()), (0, expected), "{ran:?}");
    }
    assert!(run(&["info", "@test"]).out.contains(&server.entry.id));
    run(&["ls", "@none"]).fails(2, &["@none", "known are: @test"]);
    run(&["mount", "@none", "mnt"]).fails(2, &["@none"]);
    run(&["config", "test"]).fails(2, &["@NAME"]);
    // Flags come before the store's settings.
    run(&[
        "ls",
        "--api-url",
        "http://127.0.0.1:9",
        "--deadline",
        "1s",
        "@test",
    ])
    .fails(1, &["cannot be reached"]);
}

#[test]
fn a_token_in_the_file_is_used_and_only_in_a_private_file() {
    let (server, user) = (TestServer::start(), User::new());
    let file = format!(
        "[defaults]\ntoken = '{TOKEN}'\napi-url = '{}'\n",
        server.url()
    );
    write(&user, 0o644, &file);
    let store = format!("~{STORE}");
    let refused = kvfs(&user, &[], &["ls", &store]);
    refused.fails(2, &["chmod 600", "token-file"]);
    assert!(!refused.err.contains(TOKEN), "{refused:?}");
    write(&user, 0o600, &file);
    assert_eq!(kvfs(&user, &[], &["ls", &store]).code, 0);
    // Here the environment comes first.
    let other = [("APIFY_TOKEN", "other")];
    kvfs(&user, &other, &["ls", &store]).fails(5, &["token"]);
    let own = user.path("own.toml");
    fs::write(&own, "[defaults]\nunknown = 1\n").expect("a file");
    let own = own.display().to_string();
    kvfs(&user, &[], &["ls", "--config", &own, &store]).fails(2, &["'unknown'", "known are"]);
    kvfs(&user, &[], &["mount", &store, "mnt", "-o", "config=none"]).fails(1, &["none"]);
}
