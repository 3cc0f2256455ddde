//! Every row of the page and the tests that produce what it says, so that a row without proof fails.
//!
//! Not produced here: a container engine and systemd itself, which tests cannot have (what they do to
//! a process is done by namespaces, capabilities and `no_new_privs` instead), and `EBADF` as a bug of
//! kvfs, of which none is known: its test is that descriptors answer it as on any filesystem.

use std::fs;
use std::path::{Path, PathBuf};

use super::PAGE;

/// The first cell of each row, and the tests, named as in docs/SEMANTICS.md.
const ROWS: &[(&str, &[&str])] = &[
    // Mounting.
    (
        "`there is no /dev/fuse`",
        &["troubleshooting::mounting::a_system_without_the_device_is_told_to_load_the_module"],
    ),
    (
        "`fusermount3 is missing`",
        &["troubleshooting::mounting::a_user_without_the_helper_is_told_to_install_it"],
    ),
    (
        "`this process may not mount`",
        &[
            "troubleshooting::mounting::who_may_not_mount_is_told_so",
            "troubleshooting::mounting::a_helper_that_has_no_effect_is_named_with_the_reason",
        ],
    ),
    (
        "`uncomment user_allow_other in /etc/fuse.conf`",
        &["troubleshooting::mounting::mounts_for_others_need_a_line_in_the_configuration_of_fuse"],
    ),
    ("`'…' was looked up as a store's id`", REFUSALS),
    ("`the store does not exist or may not be seen`", REFUSALS),
    ("`HTTP 403, insufficient-permissions`", REFUSALS),
    ("`refused without --insecure-http`", REFUSALS),
    ("`HTTP 401`", REFUSALS),
    (
        "the token of `apify login` is not found",
        &["troubleshooting::a_token_in_the_keyring_is_not_found_and_is_passed_as_the_page_says"],
    ),
    (
        "`it holds the stores …`",
        &["cli_direct::folders_of_several_stores_are_refused_with_their_names"],
    ),
    (
        "`the last mount on … has not ended`",
        &["commands::the_next_mount_is_told_that_the_last_one_still_uploads"],
    ),
    (
        "`cannot register the mount in …`",
        &["cli::a_runtime_folder_that_cannot_be_used_is_named"],
    ),
    ("`already mounted`", REFUSALS),
    ("`… is inside the mount point`", REFUSALS),
    (
        "`… is not a setting`, `… is a secret, and others can read the file`",
        REFUSALS,
    ),
    (
        "another store or account than expected",
        &["cli_config::every_setting_is_shown_with_where_it_comes_from"],
    ),
    (
        "a mount from fstab can be written to",
        &[
            "troubleshooting::mounting::a_line_of_fstab_with_defaults_can_be_written_to_and_one_with_ro_cannot",
        ],
    ),
    (
        "a systemd unit fails, or systemd starts it again and again",
        &[
            "troubleshooting::mounting::a_unit_whose_store_cannot_be_opened_ends_with_the_reason_and_is_never_ready",
            "troubleshooting::mounting::a_helper_that_has_no_effect_is_named_with_the_reason",
        ],
    ),
    ("`the link's signature expired`", REFUSALS),
    // Reading.
    (
        "`ls -l` shows a smaller size than `wc -c` counts",
        &[
            "reading::tools::sizes_are_exact_once_a_file_was_opened",
            "reading::sizes::with_exact_sizes_stat_is_right_before_anything_was_opened",
        ],
    ),
    (
        "`find -size`, `du`, `wc -c A B` show stored sizes",
        &[
            "reading::sizes::with_exact_sizes_stat_is_right_before_anything_was_opened",
            "reading::sizes::raw_mounts_show_stored_bytes_and_their_sizes",
        ],
    ),
    (
        "bytes look like binary garbage",
        &["reading::sizes::raw_mounts_show_stored_bytes_and_their_sizes"],
    ),
    (
        "a change does not show",
        &[
            "requests::reading_a_small_record_by_name_costs_one_request_and_again_none",
            "requests::a_changed_record_costs_one_request_after_the_ttl_and_is_read_new",
        ],
    ),
    (
        "a file cannot be found, though its key exists",
        &["reading::names::keys_that_are_no_file_names_are_listed_and_reachable"],
    ),
    (
        "a name that ends in `%_` and a hash is not found",
        &["fs_core::names::every_odd_key_is_listed_and_can_be_read_by_its_name"],
    ),
    (
        "cannot write",
        &["reading::attributes::nothing_can_be_changed_and_every_attempt_says_so"],
    ),
    (
        "a program is slow",
        &["watching::a_trace_shows_each_operation_with_its_source_until_the_mount_ends"],
    ),
    (
        "programs wait",
        &["faults::answers::too_many_requests_are_waited_for_as_the_server_asks"],
    ),
    (
        "reading goes on after the network is gone, then fails",
        &[
            "faults::stores::a_server_that_is_gone_leaves_what_is_cached_and_comes_back",
            "fs_core::disk_cache::an_immutable_store_is_read_from_the_disk_cache_without_any_request",
        ],
    ),
    (
        "`Transport endpoint is not connected`",
        &["troubleshooting::what_a_killed_daemon_leaves_is_called_as_on_the_page"],
    ),
    (
        "a file of an `apify run` lacks its extension",
        &["clients::folders_of_crawlee_and_the_sdk_for_javascript_are_stores"],
    ),
    // Unmounting.
    (
        "`in use`",
        &["daemon::a_mount_in_use_is_only_unmounted_lazily_or_by_force"],
    ),
    ("it hangs", &["daemon::a_hung_daemon_holds_nobody_up"]),
    (
        "`not in the store yet`",
        &[
            "write_back::unmounting_says_what_is_left_and_recover_uploads_it_when_the_server_is_back",
        ],
    ),
    (
        "`refused by the store and kept`",
        &[
            "troubleshooting::what_the_store_did_not_take_is_told_when_it_is_unmounted_and_can_be_dropped",
        ],
    ),
    // Errnos.
    (
        "`ENOENT`",
        &["faults::answers::an_error_page_is_not_a_record"],
    ),
    (
        "`EACCES`",
        &["faults::answers::an_error_page_is_not_a_record"],
    ),
    (
        "`EROFS`",
        &[
            "reading::attributes::nothing_can_be_changed_and_every_attempt_says_so",
            "disks::a_staging_disk_that_becomes_read_only_is_told_to_who_writes_and_loses_nothing",
        ],
    ),
    (
        "`ESTALE`",
        &[
            "writing::others::nobody_loses_a_change_to_somebody_else",
            "faults::answers::a_body_that_broke_and_then_changed_is_an_error_never_a_mixture",
        ],
    ),
    (
        "`ETIMEDOUT`",
        &[
            "faults::stores::kinds_of_failures_have_their_errnos_and_are_not_remembered",
            "writing::deadlines::an_upload_of_which_the_server_takes_nothing_ends_with_the_deadline",
        ],
    ),
    (
        "`EIO`",
        &[
            "faults::answers::an_error_page_is_not_a_record",
            "disks::a_staging_disk_that_is_taken_away_is_told_to_who_writes_and_is_used_again_when_it_is_back",
        ],
    ),
    (
        "`EDQUOT`",
        &["faults::answers::an_error_page_is_not_a_record"],
    ),
    (
        "`EFBIG`",
        &["writing::large::what_is_larger_than_allowed_is_refused_while_it_is_written"],
    ),
    (
        "`ENOSPC`",
        &[
            "disks::a_staging_disk_that_others_fill_is_told_to_who_writes_and_is_used_again_once_there_is_room",
        ],
    ),
    (
        "`EINVAL`",
        &["fs_write::names::names_that_no_record_can_have_are_refused"],
    ),
    (
        "`ENAMETOOLONG`",
        &["writing::everyday::names_that_are_too_long_cannot_be_made_and_are_not_there"],
    ),
    (
        "`EEXIST`",
        &["writing::handles::exclusive_creation_and_locks_work_among_programs_of_this_machine"],
    ),
    (
        "`EPERM`",
        &[
            "writing::everyday::what_a_store_has_none_of_is_refused_and_what_it_cannot_keep_is_accepted",
        ],
    ),
    ("`ENXIO`", ATTRIBUTES),
    (
        "`EINTR`",
        &["faults::blocked::ctrl_c_ends_a_program_that_handles_it_while_blocked_in_a_read"],
    ),
    ("`ENODATA`", ATTRIBUTES),
    ("`EOPNOTSUPP`", ATTRIBUTES),
    ("`ERANGE`", ATTRIBUTES),
    (
        "`EISDIR`, `ENOTDIR`",
        &["writing::handles::descriptors_do_only_what_they_were_opened_for"],
    ),
    (
        "`EBADF`",
        &["writing::handles::descriptors_do_only_what_they_were_opened_for"],
    ),
];

const REFUSALS: &[&str] =
    &["troubleshooting::what_keeps_a_mount_from_being_made_is_said_in_the_words_of_the_page"];

const ATTRIBUTES: &[&str] =
    &["troubleshooting::errnos_of_attributes_and_holes_are_those_of_the_page"];

/// Returns the first cells of the page's tables, but for their heads.
fn symptoms() -> Vec<&'static str> {
    let cell = |line: &'static str| line.strip_prefix("| ")?.split(" | ").next();
    let cells = PAGE.lines().filter_map(cell);
    cells
        .filter(|cell| !cell.starts_with("---") && !["symptom", "errno"].contains(cell))
        .collect()
}

/// Returns the file of a test.
fn file_of(test: &str) -> Option<PathBuf> {
    let (module, _) = test.rsplit_once("::")?;
    let path = module.replace("::", "/");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    ["mount", "core"]
        .iter()
        .flat_map(|folder| {
            [
                format!("{folder}/{path}.rs"),
                format!("{folder}/{path}/mod.rs"),
            ]
        })
        .map(|file| root.join(file))
        .find(|file| file.exists())
}

#[test]
fn every_row_of_the_page_is_produced_by_a_test() {
    let symptoms = symptoms();
    assert!(symptoms.len() > 50, "the tables are not found any more");
    for symptom in &symptoms {
        let known = ROWS.iter().any(|(row, _)| row == symptom);
        assert!(known, "no test is named for the row '{symptom}'");
    }
    for (row, tests) in ROWS {
        assert!(symptoms.contains(row), "the page has no row '{row}'");
        for test in *tests {
            let file = file_of(test).unwrap_or_else(|| panic!("there is no file of {test}"));
            let text = fs::read_to_string(&file).expect("a file of tests");
            let name = test.rsplit("::").next().unwrap_or_default();
            // A function, or a line of a macro's table.
            let is_there =
                text.contains(&format!("fn {name}()")) || text.contains(&format!(" {name}: ["));
            assert!(is_there, "{} has no test {name}", file.display());
        }
    }
}
