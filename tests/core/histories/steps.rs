//! What a history consists of, and which histories there are.

use std::fmt;

/// A file: one of two names.
pub type Name = usize;

/// One step of a history: what a program does, as system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// `open` with `O_TRUNC`, `write`, `close`.
    Store(Name),
    /// `open`, `write` in the middle, `close`.
    Edit(Name),
    /// `open` with `O_APPEND`, `write`, `close`.
    Append(Name),
    /// `open` with `O_CREAT | O_EXCL`, `write`, `close`.
    Exclusive(Name),
    /// The same with `fsync` before `close`.
    StoreSync(Name),
    EditSync(Name),
    AppendSync(Name),
    ExclusiveSync(Name),
    /// `open` for writing, which makes the file if it is missing; it stays open.
    Hold(Name),
    /// `open`, `write`; it stays open.
    Take(Name),
    /// A `write` to the file that is held open.
    Change,
    /// `close` of the file that is held open.
    Close,
    Unlink(Name),
    Rename(Name, Name),
    /// `truncate` without a descriptor.
    Truncate(Name),
}

impl Step {
    /// Returns whether it opens, writes and closes a file; and whether it syncs.
    pub fn writes(self) -> Option<(Name, bool)> {
        match self {
            Self::Store(name) | Self::Edit(name) | Self::Append(name) | Self::Exclusive(name) => {
                Some((name, false))
            }
            Self::StoreSync(name)
            | Self::EditSync(name)
            | Self::AppendSync(name)
            | Self::ExclusiveSync(name) => Some((name, true)),
            _ => None,
        }
    }

    /// Returns the names that it is about, given the one that is held open.
    pub fn names(self, held: Option<Name>) -> Vec<Name> {
        match self {
            Self::Hold(name) | Self::Take(name) | Self::Unlink(name) | Self::Truncate(name) => {
                vec![name]
            }
            Self::Rename(from, to) => vec![from, to],
            Self::Change | Self::Close => held.into_iter().collect(),
            _ => self.writes().map(|(name, _)| name).into_iter().collect(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = |name: &Name| ["a", "b"][*name];
        match self {
            Self::Store(name) => write!(f, "store {}", of(name)),
            Self::Edit(name) => write!(f, "edit {}", of(name)),
            Self::Append(name) => write!(f, "append {}", of(name)),
            Self::Exclusive(name) => write!(f, "create {}", of(name)),
            Self::StoreSync(name) => write!(f, "store+fsync {}", of(name)),
            Self::EditSync(name) => write!(f, "edit+fsync {}", of(name)),
            Self::AppendSync(name) => write!(f, "append+fsync {}", of(name)),
            Self::ExclusiveSync(name) => write!(f, "create+fsync {}", of(name)),
            Self::Hold(name) => write!(f, "hold {}", of(name)),
            Self::Take(name) => write!(f, "take {}", of(name)),
            Self::Change => write!(f, "change"),
            Self::Close => write!(f, "close"),
            Self::Unlink(name) => write!(f, "unlink {}", of(name)),
            Self::Rename(from, to) => write!(f, "rename {} {}", of(from), of(to)),
            Self::Truncate(name) => write!(f, "truncate {}", of(name)),
        }
    }
}

impl std::str::FromStr for Step {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        all()
            .into_iter()
            .find(|step| step.to_string() == text)
            .ok_or_else(|| format!("'{text}' is no step"))
    }
}

/// Returns all steps.
pub fn all() -> Vec<Step> {
    let mut steps = vec![Step::Change, Step::Close];
    for name in [0, 1] {
        steps.extend([
            Step::Store(name),
            Step::Edit(name),
            Step::Append(name),
            Step::Exclusive(name),
            Step::StoreSync(name),
            Step::EditSync(name),
            Step::AppendSync(name),
            Step::ExclusiveSync(name),
            Step::Hold(name),
            Step::Take(name),
            Step::Unlink(name),
            Step::Rename(name, 1 - name),
            Step::Truncate(name),
        ]);
    }
    steps
}

/// What is there when every step has succeeded: which names, which of them is held open.
#[derive(Clone, Copy)]
struct Then {
    exists: [bool; 2],
    held: Option<Option<Name>>,
}

impl Then {
    /// Returns what is there after `step`, if that can be done.
    fn after(mut self, step: Step) -> Option<Self> {
        match step {
            Step::Store(name) | Step::StoreSync(name) => self.exists[name] = true,
            Step::Exclusive(name) | Step::ExclusiveSync(name) => {
                if self.exists[name] {
                    return None;
                }
                self.exists[name] = true;
            }
            Step::Edit(name)
            | Step::EditSync(name)
            | Step::Append(name)
            | Step::AppendSync(name)
            | Step::Truncate(name) => {
                if !self.exists[name] {
                    return None;
                }
            }
            Step::Hold(name) | Step::Take(name) => {
                if self.held.is_some() {
                    return None;
                }
                self.exists[name] = true;
                self.held = Some(Some(name));
            }
            Step::Change => {
                self.held?;
            }
            Step::Close => {
                self.held.take()?;
            }
            Step::Unlink(name) => {
                if !std::mem::take(&mut self.exists[name]) {
                    return None;
                }
                self.held = self.held.map(|held| held.filter(|held| *held != name));
            }
            Step::Rename(from, to) => {
                if !std::mem::take(&mut self.exists[from]) {
                    return None;
                }
                self.exists[to] = true;
                self.held = self.held.map(|held| match held {
                    Some(held) if held == from => Some(to),
                    Some(held) if held == to => None,
                    held => held,
                });
            }
        }
        Some(self)
    }
}

/// Returns the histories of exactly `len` steps that begin with these names.
///
/// Left out is what another history shows too: steps that cannot be done where nothing fails (they
/// change nothing); steps of a name that no other step is about, nor a rename links to the others;
/// and, of three steps, those that sync where they are not the last or the one before.
pub fn histories(len: usize, exists: [bool; 2], steps: &[Step]) -> Vec<Vec<Step>> {
    let mut all = Vec::new();
    let start = Then { exists, held: None };
    extend(&mut all, &mut Vec::new(), start, len, steps);
    all
}

fn extend(
    all: &mut Vec<Vec<Step>>,
    so_far: &mut Vec<Step>,
    then: Then,
    len: usize,
    steps: &[Step],
) {
    if so_far.len() == len {
        if is_linked(so_far) {
            all.push(so_far.clone());
        }
        return;
    }
    for step in steps {
        if let Some(then) = then.after(*step) {
            so_far.push(*step);
            extend(all, so_far, then, len, steps);
            so_far.pop();
        }
    }
}

/// Tells whether all steps are about the same name, or names that renames link.
fn is_linked(history: &[Step]) -> bool {
    let renames = history.iter().any(|step| matches!(step, Step::Rename(..)));
    let names: Vec<Name> = history.iter().flat_map(|step| step.names(None)).collect();
    renames || names.windows(2).all(|pair| pair[0] == pair[1])
}
