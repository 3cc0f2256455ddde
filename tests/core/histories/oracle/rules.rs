//! What must never happen: W1 to W5, and errors without a reason.

use super::*;

impl Past<'_> {
    /// W1: what was acknowledged is in the store or in the journal.
    pub fn check_kept(&self, name: Name, stored: &Content) -> Option<Broken> {
        let allowed = self.allowed(name);
        if allowed.contains(stored) {
            return None;
        }
        let key = &self.names[name];
        let journal = self.journal.iter().filter(|kept| kept.key == *key);
        let may_be_kept = self.may_be_kept(name);
        let mut journal = journal.map(|kept| (Some(kept.content.clone()), kept.refused.is_some()));
        if journal.any(|(content, refused)| {
            allowed.contains(&content) || refused && may_be_kept.contains(&content)
        }) {
            return None;
        }
        let mut effects: Vec<&Effect> = self.effects_on(name).collect();
        let others = effects.iter().rev();
        let others = others.take_while(|effect| effect.by == By::Other).count();
        effects.truncate(effects.len() - others);
        if others > 0 {
            let ours = match effects.last() {
                Some(effect) => effect.content.clone(),
                None => self.start[name].clone(),
            };
            if allowed.contains(&ours) {
                return None;
            }
        }
        Some(Broken {
            rule: "W1",
            how: format!(
                "{} has {}, which is none of {}, and the journal has {}",
                of(name),
                shown(stored),
                list(&allowed),
                list(
                    &self
                        .journal
                        .iter()
                        .filter(|kept| kept.key == *key)
                        .map(|kept| Some(kept.content.clone()))
                        .collect::<Vec<_>>()
                ),
            ),
        })
    }

    /// Checks what a mount shows against what it may show.
    pub fn check_shown(&self, name: Name, shows: &Content) -> Option<Broken> {
        let mut allowed = self.allowed(name);
        let key = &self.names[name];
        let last = self.effects_on(name).last();
        allowed.extend(last.map(|effect| effect.content.clone()));
        (!allowed.contains(shows)).then(|| Broken {
            rule: "W1",
            how: format!(
                "after a kill {} shows {}, which is none of {}, and the journal has {:?}",
                of(name),
                shown(shows),
                list(&allowed),
                self.journal
                    .iter()
                    .filter(|kept| kept.key == *key)
                    .collect::<Vec<_>>(),
            ),
        })
    }

    /// W3, W4, W5: what the store was made to do.
    pub fn check_effects(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for name in [0, 1] {
            let effects: Vec<&Effect> = self.effects_on(name).collect();
            for (at, effect) in effects.iter().enumerate() {
                if effect.by == By::Other {
                    continue;
                }
                let Some(index) = self.maker(name, effect) else {
                    // A file that was just made may be renamed.
                    if effect
                        .content
                        .as_ref()
                        .is_some_and(|bytes| !bytes.is_empty())
                    {
                        broken.push(Broken {
                            rule: "W1",
                            how: format!(
                                "{} was stored as {}, which nobody wrote",
                                of(name),
                                shown(&effect.content)
                            ),
                        });
                    }
                    continue;
                };
                broken.extend(self.check_order(name, &effects[..at], effect, index));
                broken.extend(self.check_undone(name, effect, index));
                broken.extend(self.check_unasked(name, &effects[..at], effect, index));
            }
        }
        broken
    }

    /// W4: older bytes never replace newer ones.
    pub(super) fn check_order(
        &self,
        name: Name,
        before: &[&Effect],
        effect: &Effect,
        index: usize,
    ) -> Option<Broken> {
        let ended = self.ops[index].ended?;
        let newer = before.iter().find(|earlier| {
            let maker = self.maker(name, earlier);
            // What was not finished when the daemon was killed may be undone.
            maker.is_some_and(|maker| {
                maker != index
                    && self.ops[maker].began > ended
                    && self.ops[maker].end != Some(End::Killed)
                    // Nor what a program was told has failed, though its answer was lost.
                    && !(self.ops[index].end == Some(End::Ok)
                        && matches!(
                            self.ops[maker].end,
                            Some(End::Failed("rename" | "truncate", ..))
                        ))
            })
        })?;
        Some(Broken {
            rule: "W4",
            how: format!(
                "{:?} made {} of '{}' {} after '{}' had made it {}",
                effect.by,
                of(name),
                self.ops[index].step,
                shown(&effect.content),
                self.maker(name, newer)
                    .map_or_else(String::new, |maker| self.ops[maker].step.to_string()),
                shown(&newer.content),
            ),
        })
    }

    /// W3: what failed, or was interrupted before it was sent, has no effect.
    pub(super) fn check_undone(&self, name: Name, effect: &Effect, index: usize) -> Option<Broken> {
        let op = &self.ops[index];
        let ended = op.ended?;
        if effect.at < ended || effect.by == By::Recover {
            return None;
        }
        let how = match &op.end {
            // It says that both names exist.
            Some(End::Failed("rename", ..)) if op.deletes => return None,
            Some(End::Failed(call, errno, _)) => format!("its {call} failed with {errno}"),
            Some(End::Interrupted) if op.unsent => {
                "it was ended before anything was sent".to_owned()
            }
            _ => return None,
        };
        Some(Broken {
            rule: "W3",
            how: format!(
                "'{}' made {} {} although {how}",
                op.step,
                of(name),
                shown(&effect.content)
            ),
        })
    }

    /// W5: what another client stored is not replaced unasked.
    pub(super) fn check_unasked(
        &self,
        name: Name,
        before: &[&Effect],
        effect: &Effect,
        index: usize,
    ) -> Option<Broken> {
        if !self.mode.etags {
            return None;
        }
        let theirs = before.last().filter(|last| last.by == By::Other)?;
        let op = &self.ops[index];
        let had = before[..before.len() - 1]
            .iter()
            .take_while(|effect| effect.at < op.opened.unwrap_or(op.began))
            .last()
            .map_or(&self.start[name], |effect| &effect.content);
        let asked = match op.step {
            Step::Unlink(_) => true,
            Step::Truncate(_)
                if cut(vec![theirs.content.clone()], index).contains(&effect.content) =>
            {
                true
            }
            Step::Rename(from, to) if from == name => {
                // Else it is what was renamed.
                let moved = self
                    .effects_on(to)
                    .any(|put| put.by == effect.by && put.content == theirs.content);
                // What was opened and changed since is theirs with that change, or replaces it.
                let taken = self.ops[..index].iter().any(|op| {
                    let found = match op.step {
                        Step::Close | Step::Change => None,
                        Step::Truncate(_) => op.ended,
                        _ => op.opened,
                    };
                    let base = op.base.as_ref().map(|(_, base)| base);
                    found.is_some_and(|found| found > theirs.at)
                        && self.concerns(op, name)
                        && base.is_none_or(|base| theirs.content.as_ref() == Some(base))
                });
                moved || taken || theirs.at > effect.asked
            }
            Step::Rename(..) => effect.by != By::Recover,
            // A file that is made without `O_EXCL` replaces whatever is made meanwhile.
            _ if had.is_none() && effect.by != By::Recover => {
                !matches!(op.step, Step::Exclusive(_) | Step::ExclusiveSync(_))
            }
            _ => theirs.at < op.opened.unwrap_or(op.began),
        };
        // A rename replaces whatever is there when its bytes are stored, which may be later.
        let asked = asked
            || self.ops.iter().any(|op| {
                let is_stored = || {
                    let own = |earlier: &&&Effect| earlier.by != By::Other;
                    let last = before.iter().rev().find(own);
                    last.is_some_and(|last| last.content.is_some() && last.at > op.began)
                };
                matches!(op.step, Step::Rename(_, to) if to == name)
                    && op.began < effect.at
                    && (op.ended.is_none_or(|ended| ended > theirs.at)
                        || effect.by == By::Uploads && !is_stored())
            });
        (!asked).then(|| Broken {
            rule: "W5",
            how: format!(
                "'{}' ({:?}) made {} {}, over another client's {}",
                op.step,
                effect.by,
                of(name),
                shown(&effect.content),
                shown(&theirs.content)
            ),
        })
    }

    /// W4: what was refused is superseded by what came later.
    pub fn check_refused(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for name in [0, 1] {
            let key = &self.names[name];
            let kept: Vec<&Kept> = self
                .journal
                .iter()
                .filter(|kept| kept.key == *key && kept.refused.is_some())
                .collect();
            if kept.len() > 1 {
                let contents: Vec<Content> =
                    kept.iter().map(|kept| Some(kept.content.clone())).collect();
                broken.push(Broken {
                    rule: "W4",
                    how: format!("the journal keeps {} of {}", list(&contents), of(name)),
                });
            }
            for kept in kept {
                let content = Some(kept.content.clone());
                let maker = self
                    .on(name)
                    .map(|(index, _)| index)
                    .filter(|index| self.contents(*index, name).contains(&content))
                    .last();
                let Some(ended) = maker.and_then(|maker| self.ops[maker].ended) else {
                    continue;
                };
                let later = self.on(name).find(|(index, op)| {
                    op.began > ended
                        && self.weight(*index) == Weight::Certain
                        && self.is_stored(*index, name)
                });
                if let Some((_, later)) = later {
                    broken.push(Broken {
                        rule: "W4",
                        how: format!(
                            "the journal keeps {} of {} although '{}' came later",
                            shown(&content),
                            of(name),
                            later.step
                        ),
                    });
                }
            }
        }
        broken
    }

    pub(super) fn is_stored(&self, index: usize, name: Name) -> bool {
        self.effects_on(name)
            .any(|effect| self.maker(name, effect) == Some(index))
    }

    /// Checks that nothing failed without a reason, and that what was changed is what was there.
    pub fn check_ends(&self) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (index, op) in self.ops.iter().enumerate() {
            if let Some(End::Failed(call, errno, kind)) = &op.end {
                let with_reason = match kind {
                    None => !self.plain,
                    Some(ErrorKind::Changed) => {
                        self.injected.contains(&ErrorKind::Changed)
                            || self.effects.iter().any(|effect| effect.by == By::Other)
                            // What is journalled is to replace what a killed rename has deleted.
                            || self.ops[..index]
                                .iter()
                                .any(|op| op.deletes && op.end == Some(End::Killed))
                    }
                    Some(_) => !self.injected.is_empty(),
                };
                if !with_reason {
                    broken.push(Broken {
                        rule: "errors",
                        how: format!("'{}': {call} failed with {errno} ({kind:?})", op.step),
                    });
                }
            }
            if let Some((name, base)) = &op.base {
                let mut found = self.found_open(index, *name);
                // Of a step under way, any part may be seen.
                for (other, at_once) in self.on(*name) {
                    if overlap(at_once, op) {
                        found.extend(self.contents(other, *name));
                        let before = self.found(other, *name);
                        found.extend(changed(&before, at_once.step, other));
                        found.extend(before);
                    }
                }
                if !found.contains(&Some(base.clone())) {
                    broken.push(Broken {
                        rule: "W1",
                        how: format!(
                            "'{}' found {} in {}, which is none of {}",
                            op.step,
                            shown(&Some(base.clone())),
                            of(*name),
                            list(&found)
                        ),
                    });
                }
            }
        }
        broken
    }

    /// Returns what a step may have found in a file that it opened: that, and what others that have
    /// it open wrote to it and could not store.
    pub(super) fn found_open(&self, index: usize, name: Name) -> Vec<Content> {
        let op = &self.ops[index];
        let until = op.opened.unwrap_or(u64::MAX);
        let before = |other: usize| other != index && self.ops[other].began < until;
        let binds = |other: usize| {
            other != index && self.ops[other].ended.is_some_and(|ended| ended < op.began)
        };
        let mut found = self.may_have(name, Some(index), &before, &binds);
        // A file that was made just now.
        found.push(Some(Bytes::new()));
        let held = self.is_held();
        for (other, _) in self.on(name) {
            let at_once = self.ops[other].ended.is_none_or(|ended| ended > op.began);
            if before(other) && (held || at_once) {
                found.extend(self.contents(other, name));
            }
        }
        let others = self
            .effects_on(name)
            .filter(|effect| effect.by == By::Other);
        found.extend(others.map(|effect| effect.content.clone()));
        found.extend(self.refused(name, until));
        found
    }
}
