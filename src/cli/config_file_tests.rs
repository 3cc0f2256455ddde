use std::os::unix::fs::PermissionsExt;

use super::*;

const HOME: &str = "/home/me";

fn read_with(mode: u32, text: &str) -> Result<ConfigFile, CliError> {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("config.toml");
    fs::write(&path, text).expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("a mode");
    ConfigFile::read(path, Some(Path::new(HOME)), true)
}

fn read(text: &str) -> Result<ConfigFile, CliError> {
    read_with(0o644, text)
}

fn flags(settings: &[Setting]) -> Vec<String> {
    settings.iter().filter_map(Setting::flag).collect()
}

#[test]
fn settings_become_the_flags_of_the_same_name() {
    let file = read(
        "[defaults]\nttl = '1m'\nraw = true\nexact_sizes = false\nuid = 7\nfile-mode = '0400'\n\
         [stores.prod]\nstore = 'me~s'\ntoken-file = '~/t'\n",
    )
    .expect("settings");
    assert_eq!(
        flags(&file.defaults),
        ["--file-mode=0400", "--raw", "--ttl=1m", "--uid=7"]
    );
    let prod = file.named("prod").expect("a store");
    assert_eq!(prod.store, ["me~s"]);
    assert_eq!(flags(&prod.settings), ["--token-file=/home/me/t"]);
}

#[test]
fn paths_count_from_the_files_folder() {
    let file = read("[stores.a]\nstore = './s'\ncache-dir = 'c'\n[stores.b]\nstore = '~b'\n");
    let file = file.expect("settings");
    let folder = file.path.parent().expect("a folder");
    let a = file.named("a").expect("a store");
    assert_eq!(a.store, [folder.join("./s").display().to_string()]);
    let cache = format!("--cache-dir={}", folder.join("c").display());
    assert_eq!(flags(&a.settings), [cache]);
    assert_eq!(file.named("b").expect("a store").store, ["~b"]);
}

#[test]
fn what_is_unknown_is_named_with_what_is_known() {
    for (text, name, known) in [
        ("[defaults]\ntll = '1m'", "'tll'", "token-file, ttl"),
        (
            "[stores.a]\nstore = 'b'\nstor = 'c'",
            "'stor'",
            "status, store, timeout",
        ),
        ("[default]\n", "`default`", "`defaults`"),
        ("[defaults]\nstore = 'x'", "'store'", "token-file, ttl"),
        ("[defaults]\noptions = 'x'", "'options'", "ttl"),
        ("[defaults]\nconfig = 'x'", "'config'", "ttl"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.message.contains(name), "{error}");
        let said = format!("{error} {:?}", error.hints);
        assert!(said.contains(known), "{said}");
    }
    let error = read("[stores.a]\nstore = 'b'").expect("settings");
    let error = error.named("c").expect_err("no such store");
    assert!(error.hints[0].contains("@a"), "{:?}", error.hints);
}

#[test]
fn wrong_values_are_told_with_the_place() {
    for (text, expected) in [
        ("[defaults]\nttl = 'soon'", "10s"),
        ("[defaults]\nttl = true", "must be a text"),
        ("[defaults]\nraw = 'yes'", "true or false"),
        ("[defaults]\nfile-mode = 0o444", "must be a text"),
        ("[defaults]\nuid = 'no-such-user'", "/etc/passwd"),
        ("[defaults]\napi-url = 'nowhere'", "https://api.apify.com"),
        (
            "[defaults]\nimmutable = true\nttl = '1m'",
            "exclude each other",
        ),
        ("[stores.x]\nttl = '1m'", "[stores.x] needs the store"),
        ("[stores.x]\nstore = '@y'", "needs the store"),
        ("[defaults]\nttl = ", "config.toml:2:"),
    ] {
        let error = read(text).expect_err(text);
        assert!(error.message.contains(expected), "{error}");
        assert!(error.message.contains("config.toml"), "{error}");
    }
}

#[test]
fn secrets_are_refused_where_others_can_read_them() {
    for text in [
        "[defaults]\ntoken = 's3cret'",
        "[stores.a]\nstore = 'a'\nsignature = 's3cret'",
        "[stores.a]\nstore = 'https://h/v2/key-value-stores/a/keys?signature=s3cret'",
    ] {
        let error = read_with(0o640, text).expect_err("open to others");
        let said = format!("{error:?}");
        assert!(
            said.contains("chmod 600") && said.contains("token-file"),
            "{said}"
        );
        assert!(!said.contains("s3cret"), "{said}");
        let file = read_with(0o600, text).expect("a private file");
        let shown = format!("{:?}", file.defaults);
        assert!(!shown.contains("s3cret"), "{shown}");
    }
    let error = read("[defaults]\ntoken = s3cret").expect_err("not TOML");
    assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
}

#[test]
fn a_file_that_everybody_can_write_is_refused() {
    let error = read_with(0o646, "").expect_err("writable");
    assert!(error.hints[0].contains("chmod o-w"), "{error:?}");
}

#[test]
fn a_file_that_is_not_there_says_nothing_unless_it_was_asked_for() {
    let missing = PathBuf::from("/no/such/config.toml");
    let file = ConfigFile::read(missing.clone(), None, false).expect("nothing");
    assert!(!file.found && file.defaults.is_empty());
    assert!(ConfigFile::read(missing, None, true).is_err());
    // Nor can there be one where a file stands in the place of a folder.
    let below_a_file = PathBuf::from("/etc/hostname/.config/kvfs/config.toml");
    let file = ConfigFile::read(below_a_file.clone(), None, false).expect("nothing");
    assert!(!file.found && file.defaults.is_empty());
    assert!(ConfigFile::read(below_a_file, None, true).is_err());
}

#[test]
fn options_that_exclude_each_other_do_so_here() {
    let command = options::mount_command();
    for (one, other) in [
        ("ttl", "immutable"),
        ("allow-other", "allow-root"),
        ("signature", "signature-file"),
        ("token", "token-file"),
    ] {
        assert!(conflict(&command, one, other), "{one} {other}");
        assert!(conflict(&command, other, one), "{other} {one}");
    }
    assert!(!conflict(&command, "ttl", "raw"));
    assert!(!conflict(&command, "token", "signature"));
}
