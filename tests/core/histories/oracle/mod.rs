//! The reference model: what a name may have after what happened, and what must never happen.
//!
//! W1 to W6 are the rules of the write side (docs/DESIGN.md). What is known for certain is what the
//! store did and what programs were told; so the model is a set of what may be, which every success
//! makes smaller.

use bytes::Bytes;
use kvfs::store::ErrorKind;

use super::actor::{End, Op};
use super::rig::{Kept, Mode};
use super::steps::{Name, Step};
use super::turnstile::{By, Effect};

mod rules;

/// What a name has, or had: its content, or nothing.
pub type Content = Option<Bytes>;

/// A rule that was broken, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Broken {
    pub rule: &'static str,
    pub how: String,
}

/// How much a step counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weight {
    /// It happened.
    Certain,
    /// It may have happened.
    Maybe,
    /// It did not.
    Never,
}

/// All that happened in a run so far.
pub struct Past<'a> {
    pub mode: Mode,
    pub names: &'a [String; 2],
    pub start: &'a [Content; 2],
    pub ops: &'a [Op],
    pub effects: &'a [Effect],
    pub journal: &'a [Kept],
    /// Failures that the run made up.
    pub injected: &'a [ErrorKind],
    /// The disk was full for a while.
    pub is_full: bool,
    /// Nothing was made up and no steps ran at once.
    pub plain: bool,
}

impl Past<'_> {
    fn on(&self, name: Name) -> impl Iterator<Item = (usize, &Op)> {
        let all = self.ops.iter().enumerate();
        all.filter(move |(_, op)| self.concerns(op, name))
    }

    fn concerns(&self, op: &Op, name: Name) -> bool {
        op.makes.iter().any(|(of, _)| *of == name) || op.step.names(None).contains(&name)
    }

    fn effects_on(&self, name: Name) -> impl DoubleEndedIterator<Item = &Effect> {
        let key = &self.names[name];
        self.effects
            .iter()
            .filter(move |effect| effect.key.as_str() == key)
    }

    /// Returns whether a step had an effect on the store, as far as that can be told.
    fn has_effect(&self, index: usize) -> bool {
        [0, 1].into_iter().any(|name| {
            self.effects_on(name).any(|effect| match effect.by {
                By::Step(by) => by == index,
                By::Other => false,
                By::Uploads | By::Recover => {
                    effect.content.is_some() && self.possible(index, name).contains(&effect.content)
                }
            })
        })
    }

    /// Returns all that a step could make of a name, whatever else happened.
    fn possible(&self, index: usize, name: Name) -> Vec<Content> {
        let all_of = |from: Name| {
            let mut all = vec![self.start[from].clone()];
            for other in 0..index {
                all.extend(self.possible(other, from));
            }
            let effects = self.effects_on(from);
            all.extend(effects.map(|effect| effect.content.clone()));
            all
        };
        match self.ops[index].step {
            Step::Rename(from, to) if name == to => all_of(from),
            Step::Truncate(of) if name == of => cut(all_of(of), index),
            _ => self.ops[index]
                .makes_of(name)
                .map(|content| content.cloned())
                .collect(),
        }
    }

    fn weight(&self, index: usize) -> Weight {
        let op = &self.ops[index];
        match &op.end {
            None | Some(End::Killed) => Weight::Maybe,
            Some(End::Interrupted) if op.unsent => Weight::Never,
            Some(End::Interrupted) => Weight::Maybe,
            Some(End::Failed(..)) if self.has_effect(index) => Weight::Maybe,
            // It has got half way: both names exist, the new one perhaps only in the journal.
            Some(End::Failed("rename", ..)) if op.deletes => Weight::Maybe,
            Some(End::Failed(..)) => Weight::Never,
            Some(End::Ok) if op.unsure => Weight::Maybe,
            // No program waits for the end of a file into which nothing was written.
            Some(End::Ok) if self.is_full && op.makes.iter().all(|(_, made)| is_empty(made)) => {
                Weight::Maybe
            }
            Some(End::Ok) => match op.step {
                // What was written is promised to be somewhere when it is closed.
                Step::Hold(_) | Step::Take(_) | Step::Change => Weight::Maybe,
                _ => Weight::Certain,
            },
        }
    }

    /// Tells whether a name certainly has what a step made of it. A rename of a file that is open and
    /// was changed is promised no more than the file itself, until that is closed.
    fn is_certain(&self, index: usize, name: Name) -> bool {
        let op = &self.ops[index];
        let is_open = |from: Name| {
            let mut open = false;
            for op in &self.ops[..index] {
                match op.step {
                    // It may have what another program could not store.
                    Step::Hold(of) if of == from => {
                        open |= !op.makes.is_empty() || !self.failed(index, from).is_empty();
                    }
                    Step::Take(_) | Step::Change => {
                        open |= op.makes.iter().any(|(of, _)| *of == from);
                    }
                    Step::Close if op.ended.is_some() => open = false,
                    _ => {}
                }
            }
            open
        };
        self.weight(index) == Weight::Certain
            && !matches!(op.step, Step::Rename(from, to) if to == name && is_open(from))
    }

    /// Returns the step that stored what an effect stored.
    fn maker(&self, name: Name, effect: &Effect) -> Option<usize> {
        match effect.by {
            By::Step(index) => return Some(index),
            By::Other => return None,
            By::Uploads | By::Recover => {}
        }
        effect.content.as_ref()?;
        let makers = self.on(name).filter(|(_, op)| {
            op.began < effect.at && !matches!(op.end, Some(End::Failed("lookup", ..)))
        });
        let mut makers: Vec<usize> = makers.map(|(index, _)| index).collect();
        makers.reverse();
        let made = |index: &&usize| self.contents(**index, name).contains(&effect.content);
        // What is not there in the end may have been there for a while.
        let possible = |index: &&usize| self.possible(**index, name).contains(&effect.content);
        let found = makers.iter().find(made);
        found.or_else(|| makers.iter().find(possible)).copied()
    }

    /// Returns what a name may have because of a step.
    fn contents(&self, index: usize, name: Name) -> Vec<Content> {
        let op = &self.ops[index];
        match op.step {
            Step::Rename(from, to) if name == to => self.found(index, from),
            Step::Truncate(of) if name == of => {
                let mut found = self.found(index, of);
                let at_once = self
                    .on(of)
                    .any(|(other, op)| other != index && overlap(op, &self.ops[index]));
                if at_once {
                    // As it was for a moment: just made, or cut off by another.
                    let others = (0..self.ops.len()).flat_map(|other| cut(found.clone(), other));
                    let others: Vec<Content> = others.collect();
                    found.extend(others);
                    found.push(Some(Bytes::new()));
                }
                cut(found, index)
            }
            _ => op.makes_of(name).map(|content| content.cloned()).collect(),
        }
    }

    /// Returns what a step may have found under a name.
    fn found(&self, index: usize, name: Name) -> Vec<Content> {
        let op = &self.ops[index];
        let until = op.ended.unwrap_or(u64::MAX);
        let before = |other: usize| other != index && self.ops[other].began < until;
        // What opened the file only when this one had begun may have found another one.
        let binds = |other: usize| {
            before(other)
                && self.ops[other]
                    .opened
                    .unwrap_or(self.ops[other].ended.unwrap_or(u64::MAX))
                    < op.began
        };
        let mut found = self.may_have(name, Some(index), &before, &binds);
        let others = self
            .effects_on(name)
            .filter(|effect| effect.by == By::Other);
        found.extend(others.map(|effect| effect.content.clone()));
        if self.on(name).any(|(_, other)| overlap(other, op)) {
            // A file that was just made.
            found.push(Some(Bytes::new()));
        }
        found.extend(self.refused(name, until));
        if self.is_held() {
            found.extend(self.failed(index, name));
        }
        found
    }

    /// Returns whether a program holds a file open.
    fn is_held(&self) -> bool {
        let mut ops = self.ops.iter();
        ops.any(|op| matches!(op.step, Step::Hold(_) | Step::Take(_)))
    }

    /// Returns what steps before one have written, and could not store: whoever holds the file sees it.
    fn failed(&self, index: usize, name: Name) -> Vec<Content> {
        let before = self.on(name).filter(|(other, op)| {
            *other < index
                && matches!(
                    op.end,
                    Some(End::Failed("close" | "fsync" | "truncate", ..))
                )
        });
        before
            .flat_map(|(other, _)| self.contents(other, name))
            .collect()
    }

    /// Returns what a file shows again when what was closed is refused afterwards: what the store had
    /// then.
    fn refused(&self, name: Name, until: u64) -> Vec<Content> {
        let refusals = [ErrorKind::Denied, ErrorKind::Changed];
        let refused = self.injected.iter().any(|kind| refusals.contains(kind))
            || self.effects_on(name).any(|effect| effect.by == By::Other);
        if !self.mode.write_back || !refused {
            return Vec::new();
        }
        let stored = self.effects_on(name).filter(|effect| effect.at <= until);
        let stored = stored.map(|effect| effect.content.clone());
        stored.chain([self.start[name].clone()]).collect()
    }

    /// Returns what a name may have because of the steps that count, those that no later step which
    /// happened, and `hides` allows, has replaced.
    fn may_have(
        &self,
        name: Name,
        within: Option<usize>,
        counts: &dyn Fn(usize) -> bool,
        hides: &dyn Fn(usize) -> bool,
    ) -> Vec<Content> {
        let certain: Vec<&Op> = self
            .on(name)
            .filter(|(index, _)| hides(*index) && self.is_certain(*index, name))
            .map(|(_, op)| op)
            .collect();
        let mut all = Vec::new();
        if certain.is_empty() {
            all.push(self.start[name].clone());
        }
        for (index, op) in self.on(name) {
            let hidden = certain.iter().any(|other| replaces(other, op, name));
            // What failed in the end was there while it lasted.
            let at_once = within
                .is_some_and(|within| op.ended.is_none_or(|ended| ended > self.ops[within].began));
            if counts(index) && !hidden && (at_once || self.weight(index) != Weight::Never) {
                all.extend(match within {
                    // What follows from others is not followed in circles.
                    Some(within) if index > within => {
                        op.makes_of(name).map(|content| content.cloned()).collect()
                    }
                    _ => self.contents(index, name),
                });
            }
        }
        all
    }

    /// Returns what the journal may keep, refused, in place of what was acknowledged: where closing
    /// journals, also what was closed or synced later.
    fn may_be_kept(&self, name: Name) -> Vec<Content> {
        let journals = self.mode.write_back || self.names[name].ends_with(".part");
        let certain = |index: &usize| self.is_certain(*index, name);
        let failed = self.on(name).filter(|(_, op)| {
            let later = self.on(name).filter(|(index, _)| certain(index));
            let hidden = later
                .into_iter()
                .any(|(_, other)| replaces(other, op, name));
            let was_closed = matches!(op.end, Some(End::Failed("close" | "fsync", ..)));
            journals && was_closed && !hidden
        });
        failed
            .flat_map(|(index, _)| self.contents(index, name))
            .collect()
    }

    /// Returns what a name may have now.
    fn allowed(&self, name: Name) -> Vec<Content> {
        self.may_have(name, None, &|_| true, &|_| true)
    }
}

fn is_empty(content: &Content) -> bool {
    content.as_ref().is_some_and(Bytes::is_empty)
}

/// Returns what the step of that number cuts contents to.
fn cut(contents: Vec<Content>, index: usize) -> Vec<Content> {
    let cut = contents.into_iter().flatten().map(|bytes| {
        let mut bytes = bytes.to_vec();
        bytes.resize(5 - index, 0);
        Some(bytes.into())
    });
    cut.collect()
}

/// Returns what the write of the step of that number makes of contents, before anything else writes.
fn changed(contents: &[Content], step: Step, index: usize) -> Vec<Content> {
    let made = contents.iter().flatten().filter_map(|bytes| {
        let mut bytes = bytes.to_vec();
        match step {
            Step::Edit(_) | Step::EditSync(_) => {
                bytes.resize(bytes.len().max(4), 0);
                bytes[2..4].copy_from_slice(format!("e{index}").as_bytes());
            }
            Step::Append(_) | Step::AppendSync(_) => {
                bytes.extend_from_slice(format!("+{index}").as_bytes());
            }
            Step::Take(_) => bytes.extend_from_slice(format!("t{index}").as_bytes()),
            Step::Change => bytes.extend_from_slice(format!("c{index}").as_bytes()),
            _ => return None,
        }
        Some(Some(bytes.into()))
    });
    let replaced = match step {
        Step::Store(_) | Step::StoreSync(_) => Some(format!("S{index}------")),
        Step::Exclusive(_) | Step::ExclusiveSync(_) => Some(format!("X{index}------")),
        _ => None,
    };
    made.chain(replaced.map(|text| Some(text.into()))).collect()
}

/// Tells whether what `op` makes of a name is gone because of `other`, which happened.
fn replaces(other: &Op, op: &Op, name: Name) -> bool {
    if std::ptr::eq(other, op) {
        return false;
    }
    if op
        .ended
        .is_some_and(|ended| binding(other, op, name) > ended)
    {
        return true;
    }
    // A file that was open before has lost its name, and what was still written to it with that.
    takes(other, name)
        && op.opened.is_some_and(|opened| other.began > opened)
        && other.ended.is_none_or(|ended| op.began < ended)
}

/// Tells whether two steps were under way at once.
fn overlap(one: &Op, other: &Op) -> bool {
    !std::ptr::eq(one, other)
        && one.ended.is_none_or(|ended| other.began < ended)
        && other.ended.is_none_or(|ended| one.began < ended)
}

/// Tells whether a step takes a name from the file that had it.
fn takes(op: &Op, name: Name) -> bool {
    match op.step {
        Step::Unlink(of) => of == name,
        Step::Rename(from, to) => from == name || to == name,
        _ => false,
    }
}

/// Returns since when `other` is later than `op`: what writes to a file that was open before is not
/// later than what has taken the file's name since.
fn binding(other: &Op, op: &Op, name: Name) -> u64 {
    match other.step {
        Step::Close | Step::Change if takes(op, name) => other.opens,
        _ => other.began,
    }
}

pub fn of(name: Name) -> &'static str {
    ["a", "b"][name]
}

pub fn shown(content: &Content) -> String {
    match content {
        None => "nothing".to_owned(),
        Some(bytes) => format!("'{}'", bytes.escape_ascii()),
    }
}

fn list(contents: &[Content]) -> String {
    let all: Vec<String> = contents.iter().map(shown).collect();
    format!("[{}]", all.join(", "))
}
