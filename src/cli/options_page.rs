//! docs/OPTIONS.md, made from the definitions of the command line.

use std::fs;
use std::path::Path;

use clap::{Arg, Command};

use super::options;
use super::pages::EXIT_STATUS;
use super::settings::{SERVE_VARIABLE, VARIABLE, variable_of};

/// Returns docs/OPTIONS.md: every command with its options, from the definitions.
fn options_page() -> String {
    let mut page = String::from(
        "# Options\n\nEvery command with its options; made from the definitions of the command line, which \
         a test compares.\n\nDURATION is a number with a unit, such as `10s`, `5m` or `7d`; a bare number means \
         seconds. SIZE is one such as `64MiB`, `2GiB` or `500k`. Each option of `kvfs mount` has a variable and \
         a place in the settings file of the same name; flags come first, then a named store's settings, then \
         variables, then `[defaults]`.\n",
    );
    let mut definition = super::definition();
    definition.build();
    page.push_str("\n## Every command\n\n| option | |\n| --- | --- |\n");
    let global = definition.get_arguments();
    for argument in global.filter(|argument| argument.is_global_set()) {
        let help = argument.get_help().map(ToString::to_string);
        let help = help.unwrap_or_default();
        page.push_str(&format!("| {} | {help} |\n", shown(argument)));
    }
    for command in definition
        .get_subcommands()
        .filter(|command| !command.is_hide_set())
    {
        add_command(&mut page, &format!("kvfs {}", command.get_name()), command);
    }
    page.push_str("\n## Exit codes\n\n| exit code | of every command |\n| --- | --- |\n");
    for (code, what) in EXIT_STATUS {
        page.push_str(&format!("| {code} | {what} |\n"));
    }
    page
}

fn add_command(page: &mut String, name: &str, command: &Command) {
    if command.get_name() == "help" {
        return;
    }
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    page.push_str(&format!("\n## {name}\n\n{about}.\n"));
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|argument| !argument.is_hide_set() && !argument.is_global_set())
        .filter(|argument| argument.get_id() != "help" && argument.get_id() != "version")
        .collect();
    let has_variables = ["kvfs mount", "kvfs serve"].contains(&name);
    if !arguments.is_empty() {
        page.push_str(match has_variables {
            true => "\n| option | variable | |\n| --- | --- | --- |\n",
            false => "\n| option | |\n| --- | --- |\n",
        });
    }
    for argument in arguments {
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let help = help.replace('|', "\\|").replace('\n', " ");
        let variable = match (name, argument.get_long()) {
            (_, None | Some("config")) if has_variables => "| ".to_owned(),
            ("kvfs mount", Some(long)) => format!("| `{}` ", variable_of(VARIABLE, long)),
            ("kvfs serve", Some(long)) => format!("| `{}` ", variable_of(SERVE_VARIABLE, long)),
            _ => String::new(),
        };
        page.push_str(&format!("| {} {variable}| {help} |\n", shown(argument)));
    }
    for inner in command.get_subcommands() {
        add_command(page, &format!("{name} {}", inner.get_name()), inner);
    }
}

/// Returns an argument as it is typed: `-n`, `--name VALUE`, or `NAME`.
fn shown(argument: &Arg) -> String {
    let values: Vec<String> = argument
        .get_value_names()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect();
    let value = values.join(" ").replace('|', "\\|");
    let takes_value = !options::is_switch(argument);
    let value = match takes_value && !value.is_empty() {
        true => format!(" {value}"),
        false => String::new(),
    };
    match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, None) => format!("`{}`", value.trim()),
    }
}

fn path() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/OPTIONS.md")
}

#[test]
fn the_page_of_options_is_that_of_the_definitions() {
    let written = fs::read_to_string(path()).expect("docs/OPTIONS.md");
    assert!(
        written == options_page(),
        "docs/OPTIONS.md is out of date: cargo test --lib -- --ignored write_the_page_of_options"
    );
}

#[test]
#[ignore = "writes docs/OPTIONS.md"]
fn write_the_page_of_options() {
    fs::write(path(), options_page()).expect("docs/OPTIONS.md");
}
