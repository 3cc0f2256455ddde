//! Store references between the command line and [`crate::store::reference`].

use std::path::Path;

use super::error::CliError;
use crate::redact::SafeUrl;
use crate::store::reference::{RemoteRef, StoreRef};

/// Parses what the user typed for STORE.
///
/// # Errors
/// A usage error that shows the accepted forms.
pub fn parse(typed: &[String]) -> Result<StoreRef, CliError> {
    if let [one] = typed
        && Path::new(one).is_dir()
    {
        return Ok(StoreRef::Directory(one.into()));
    }
    let parsed = match typed {
        [one] if one.contains("://") => None,
        [one] => parse_remote(one),
        _ => None,
    };
    parsed.map(StoreRef::Remote).ok_or_else(|| {
        CliError::usage("this is not a store").hinted(
            "write a store id, ~NAME, USER~NAME, run:ID, actor:NAME, task:NAME, a URL from the \
             API or Apify Console, or a local folder",
        )
    })
}

fn parse_remote(text: &str) -> Option<RemoteRef> {
    let word = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    if let Some((kind, id)) = text.split_once(':') {
        return match kind {
            "run" if word(id) => Some(RemoteRef::Run(id.into())),
            "actor" if !id.is_empty() => Some(RemoteRef::LastRunOfActor(id.into())),
            "task" if !id.is_empty() => Some(RemoteRef::LastRunOfTask(id.into())),
            _ => None,
        };
    }
    if let Some((user, name)) = text.split_once(['~', '/']) {
        return (word(name) && (user.is_empty() || word(user))).then(|| RemoteRef::Named {
            user: Some(user.to_owned()).filter(|user| !user.is_empty()),
            name: name.into(),
        });
    }
    word(text).then(|| RemoteRef::Id(text.into()))
}

/// Returns `reference` as people write it, without secrets.
pub fn describe(reference: &StoreRef) -> String {
    match reference {
        StoreRef::Remote(remote) => describe_remote(remote),
        StoreRef::Url { base, remote, .. } => {
            let base = SafeUrl::new(base.clone()).to_string();
            format!(
                "{} at {}",
                describe_remote(remote),
                base.trim_end_matches('/')
            )
        }
        StoreRef::Records(urls) => match urls.as_slice() {
            [] => "no records".to_owned(),
            [one] => one.to_string(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        },
        StoreRef::Directory(path) => path.display().to_string(),
    }
}

fn describe_remote(remote: &RemoteRef) -> String {
    match remote {
        RemoteRef::Id(id) => id.clone(),
        RemoteRef::Named { user, name } => {
            format!("{}~{name}", user.as_deref().unwrap_or_default())
        }
        RemoteRef::Run(id) => format!("run:{id}"),
        RemoteRef::LastRunOfActor(name) => format!("actor:{name}"),
        RemoteRef::LastRunOfTask(name) => format!("task:{name}"),
    }
}
