//! The end of a run: everything is compared, and what was refused is recovered.

use super::*;

impl Run<'_> {
    /// Checks what must hold whenever no step is under way.
    pub(super) fn check_now(&mut self) {
        for name in [0, 1] {
            let mut broken = None;
            // An upload may just be ending.
            for attempt in 0..10 {
                let stored = self.rig.turnstile.memory.bytes(&self.shared.names[name]);
                // Seldom the journal matters.
                let mut journal = Vec::new();
                if self
                    .past(&journal, |past| past.check_kept(name, &stored))
                    .is_some()
                {
                    journal = self.rig.mount.journal();
                }
                broken = self.past(&journal, |past| past.check_kept(name, &stored));
                if broken.is_none() {
                    break;
                }
                thread::sleep(LOOK * attempt);
            }
            self.broken.extend(broken);
        }
    }

    pub(super) fn past<T>(&self, journal: &[Kept], check: impl FnOnce(&Past<'_>) -> T) -> T {
        let effects = self.rig.turnstile.effects();
        let plain = self.choices.deviations() == 0 && !self.overlapped;
        check(&Past {
            mode: self.case.mode,
            names: &self.shared.names,
            start: &self.start,
            ops: &self.shared.ops.lock(),
            effects: &effects,
            journal,
            injected: &self.injected,
            is_full: self.injected.contains(&ErrorKind::Disk),
            plain,
        })
    }

    /// Ends the history: what is open is closed, what was held back is stored, and everything is
    /// compared. Then what was refused is recovered, and compared again.
    pub(super) fn finish(&mut self) {
        self.rig.turnstile.set_open(true);
        let journal = if let Some(folder) = self.killed {
            self.rig.left(folder)
        } else {
            self.end_programs();
            self.compare("in the end");
            self.check_now();
            let journal = self.rig.mount.journal();
            let refused = self.past(&journal, |past| past.check_refused());
            self.broken.extend(refused);
            journal
        };
        if !journal.is_empty() || self.killed.is_some() {
            let folder = match self.killed.take() {
                Some(folder) => folder,
                None => self.rig.kill(),
            };
            self.recover(folder);
        }
        let effects = self.past(&[], |past| past.check_effects());
        self.broken.extend(effects);
        let ends = self.past(&[], |past| past.check_ends());
        self.broken.extend(ends);
        for clash in self.rig.turnstile.clashes() {
            self.broken.push(Broken {
                rule: "W2",
                how: format!("two changes of one key were under way at once: {clash}"),
            });
        }
    }

    pub(super) fn end_programs(&mut self) {
        let held = *self.shared.held.lock();
        if let Some(held) = held {
            let index = self.case.steps.len();
            let began = self.rig.turnstile.tick();
            let mut ops = self.shared.ops.lock();
            while ops.len() < index {
                // A step that a kill has left out.
                let mut op = Op::new(Step::Change, began);
                op.end = Some(End::Killed);
                ops.push(op);
            }
            ops.push(Op::new(Step::Close, began));
            drop(ops);
            self.say(format!("the end closes {:?}", held.name.map(of)));
            let actor = Actor {
                mount: Arc::clone(&self.rig.mount),
                shared: Arc::clone(&self.shared),
                index,
            };
            let _ = thread::spawn(move || actor.run()).join();
            while let Stir::Finished(..) = self.rig.turnstile.next(Duration::ZERO) {}
        }
        self.rig.mount.later();
        let since = Instant::now();
        while self.rig.mount.is_uploading() && since.elapsed() < HANG {
            thread::yield_now();
        }
    }

    /// Compares what the mount shows with what the store has.
    pub(super) fn compare(&mut self, when: &str) {
        let until = Instant::now() + HANG / 10;
        for name in [0, 1] {
            let key = self.shared.names[name].clone();
            loop {
                let shows = self.rig.mount.cat(&key);
                let stored = self.rig.turnstile.memory.bytes(&key);
                if shows.as_ref().is_ok_and(|shows| *shows == stored) {
                    break;
                }
                // Other threads make known what was refused, and store what was held back.
                if Instant::now() > until {
                    self.broken.push(Broken {
                        rule: "mount is store",
                        how: match shows {
                            Ok(shows) => format!(
                                "{when} the mount shows {} as {}, the store has {}",
                                of(name),
                                shown(&shows),
                                shown(&stored)
                            ),
                            Err(error) => format!("{when} {} cannot be read: {error:?}", of(name)),
                        },
                    });
                    break;
                }
                thread::sleep(LOOK);
            }
        }
    }

    pub(super) fn recover(&mut self, folder: u32) {
        self.say("recover --upload");
        self.rig.turnstile.set_recovering(true);
        self.rig.recover(folder);
        self.rig.turnstile.set_recovering(false);
        let left = self.rig.left(folder);
        for kept in &left {
            if kept.refused != Some(true) {
                self.broken.push(Broken {
                    rule: "recover",
                    how: format!("recover left {kept:?}"),
                });
            }
        }
        for name in [0, 1] {
            let stored = self.rig.turnstile.memory.bytes(&self.shared.names[name]);
            let broken = self.past(&left, |past| past.check_kept(name, &stored));
            self.broken.extend(broken);
        }
        self.rig.mount(folder);
        self.compare("after recovery");
    }

    pub(super) fn clean_up(&mut self) {
        for thread in self.leaving.drain(..) {
            let _ = thread.join();
        }
        for name in &self.shared.names {
            if let Some(key) = Key::new(name) {
                self.rig.turnstile.remove(&key);
            }
        }
        self.rig.fit = self.broken.is_empty() && self.rig.mount.journal().is_empty();
    }
}
