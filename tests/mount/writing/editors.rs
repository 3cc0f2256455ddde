//! Editors, each driven in a terminal as a person does: whatever they do behind the scenes, saving
//! costs one PUT under the file's own name, keeps the content type, and leaves nothing else.

use std::fs;

use kvfs::store::Encoding;

use super::Writable;
use crate::support::terminal::Terminal;

/// A content type that no name and no bytes suggest.
const TYPE: &str = "application/x-edited; charset=utf-8";

/// Edits a record in which a first line is to be inserted, and checks what came of it.
#[track_caller]
fn inserts_a_line(command: &str, edit: impl Fn(&Terminal)) {
    let writable = Writable::new();
    writable.put("OUTPUT", TYPE, b"old line\n");
    writable.changed_by(command, &["PUT OUTPUT"], |mount| {
        let terminal = Terminal::start(mount, command);
        terminal.shows("old line");
        edit(&terminal);
        terminal.ends();
    });
    writable.holds("OUTPUT", "new line\nold line\n");
    writable.is_typed("OUTPUT", TYPE);
    assert_eq!(
        fs::read_to_string(writable.file("OUTPUT")).expect("a file"),
        "new line\nold line\n"
    );
    writable.leaves(&["OUTPUT"]);
}

/// Writes a new record, and checks what came of it.
#[track_caller]
fn makes_a_record(command: &str, edit: impl Fn(&Terminal)) {
    let writable = Writable::new();
    writable.changed_by(command, &["PUT new.json"], |mount| {
        let terminal = Terminal::start(mount, command);
        edit(&terminal);
        terminal.ends();
    });
    writable.holds("new.json", "[1]\n");
    writable.is_typed("new.json", "application/json; charset=utf-8");
    writable.leaves(&["new.json"]);
}

fn in_vim(vim: &Terminal) {
    vim.types(&["O", "new line", "Escape", ":wq", "Enter"]);
}

fn in_nano(nano: &Terminal) {
    nano.types(&["new line", "Enter", "C-o"]);
    nano.shows("File Name to Write").types(&["Enter"]);
    nano.shows("Wrote 2 lines").types(&["C-x"]);
}

fn in_emacs(emacs: &Terminal) {
    emacs.types(&["new line", "Enter", "C-x", "C-s"]);
    emacs.shows("Wrote ").types(&["C-x", "C-c"]);
}

#[test]
fn vim_saves_with_one_put() {
    inserts_a_line("vim OUTPUT", in_vim);
    makes_a_record("vim new.json", |vim| {
        vim.shows("new.json")
            .types(&["i", "[1]", "Escape", ":wq", "Enter"]);
    });
}

#[test]
fn vim_saves_with_one_put_whatever_it_does_for_backups() {
    for settings in [
        "backupcopy=yes",
        "backupcopy=no",
        "backup",
        "nowritebackup",
        "undofile",
    ] {
        inserts_a_line(&format!("vim -c 'set {settings}' OUTPUT"), in_vim);
    }
}

#[test]
fn vim_saves_again_and_again_with_a_put_each() {
    let writable = Writable::new();
    writable.put("OUTPUT", TYPE, b"old line\n");
    writable.changed_by("vim", &["PUT OUTPUT"; 3], |mount| {
        let vim = Terminal::start(mount, "vim OUTPUT");
        vim.shows("old line");
        for line in ["one", "two"] {
            vim.types(&["O", line, "Escape", ":w", "Enter"]);
            vim.shows("written");
        }
        vim.types(&["O", "three", "Escape", ":x", "Enter"]).ends();
    });
    writable.holds("OUTPUT", "three\ntwo\none\nold line\n");
    writable.is_typed("OUTPUT", TYPE);
    writable.leaves(&["OUTPUT"]);
}

#[test]
fn vim_left_without_saving_changes_nothing() {
    let writable = Writable::new();
    writable.put("OUTPUT", TYPE, b"old line\n");
    writable.changed_by("vim", &[], |mount| {
        let vim = Terminal::start(mount, "vim OUTPUT");
        vim.shows("old line").types(&["O", "new line", "Escape"]);
        vim.shows("new line").types(&[":q!", "Enter"]).ends();
    });
    writable.leaves(&["OUTPUT"]);
}

#[test]
fn nano_saves_with_one_put() {
    for command in [
        "nano OUTPUT",
        "nano --backup OUTPUT",
        "nano --locking OUTPUT",
    ] {
        inserts_a_line(command, in_nano);
    }
    makes_a_record("nano new.json", |nano| {
        nano.shows("New File").types(&["[1]", "C-o"]);
        nano.shows("File Name to Write").types(&["Enter"]);
        nano.shows("Wrote 1 line").types(&["C-x"]);
    });
}

#[test]
fn emacs_saves_with_one_put() {
    inserts_a_line("emacs -nw -Q OUTPUT", in_emacs);
    inserts_a_line(
        "emacs -nw -Q --eval '(setq backup-by-copying t)' OUTPUT",
        in_emacs,
    );
    inserts_a_line(
        "emacs -nw -Q --eval '(setq make-backup-files nil)' OUTPUT",
        in_emacs,
    );
    inserts_a_line(
        "emacs -nw -Q --eval '(setq file-precious-flag t)' OUTPUT",
        in_emacs,
    );
    makes_a_record("emacs -nw -Q new.json", |emacs| {
        emacs
            .shows("New file")
            .types(&["[1]", "Enter", "C-x", "C-s"]);
        emacs.shows("Wrote ").types(&["C-x", "C-c"]);
    });
}

#[test]
fn sed_and_sponge_save_in_place_with_one_put() {
    for script in [
        "sed -i '1i new line' OUTPUT",
        "(echo new line; cat OUTPUT) | sponge OUTPUT",
        "ed -s OUTPUT <<'END'\n1i\nnew line\n.\nw\nq\nEND",
    ] {
        let writable = Writable::new();
        writable.put("OUTPUT", TYPE, b"old line\n");
        writable.changes(script, &["PUT OUTPUT"]);
        writable.holds("OUTPUT", "new line\nold line\n");
        writable.is_typed("OUTPUT", TYPE);
        writable.leaves(&["OUTPUT"]);
    }
}

#[test]
fn saving_in_place_or_by_a_file_beside_costs_one_put() {
    // As Visual Studio Code does, by default and with `files.experimentalAtomicSave` or the like.
    let in_place = "const fs = require('fs');
        const fd = fs.openSync('OUTPUT', 'r+');
        fs.ftruncateSync(fd, 0);
        fs.writeSync(fd, 'new line\\nold line\\n');
        fs.fsyncSync(fd);
        fs.closeSync(fd);";
    let beside = "const fs = require('fs');
        fs.writeFileSync('OUTPUT.vsctmp', 'new line\\nold line\\n', {mode: 0o644, flush: true});
        fs.renameSync('OUTPUT.vsctmp', 'OUTPUT');";
    // As GNOME's editors do.
    let stream = "const fs = require('fs');
        fs.writeFileSync('.goutputstream-AB12CD', 'new line\\nold line\\n');
        fs.renameSync('.goutputstream-AB12CD', 'OUTPUT');";
    for program in [in_place, beside, stream] {
        let writable = Writable::new();
        writable.put("OUTPUT", TYPE, b"old line\n");
        let file = writable.mount.beside().join("program.js");
        fs::write(&file, program).expect("a program");
        writable.changes(&format!("node {}", file.display()), &["PUT OUTPUT"]);
        writable.holds("OUTPUT", "new line\nold line\n");
        writable.is_typed("OUTPUT", TYPE);
        writable.leaves(&["OUTPUT"]);
    }
}

#[test]
fn an_edited_record_that_was_compressed_is_stored_as_shown() {
    let writable = Writable::new();
    let text = b"old line\n".repeat(1000);
    writable
        .server
        .put_encoded("OUTPUT", TYPE, Encoding::Brotli, &text);
    writable.changes("sed -i '1i new line' OUTPUT", &["PUT OUTPUT"]);
    writable.holds("OUTPUT", [&b"new line\n"[..], &text].concat());
    writable.is_typed("OUTPUT", TYPE);
    writable.leaves(&["OUTPUT"]);
}
