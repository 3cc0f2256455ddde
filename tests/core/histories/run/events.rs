//! What may happen where something waits, and what follows from that.

use super::*;

impl Run<'_> {
    /// A request has come to the store.
    pub(super) fn arrived(&mut self, call: Call) {
        if call.mount != self.rig.mount.number {
            return;
        }
        let Some(step) = call.step else {
            if self.rig.mode.lazy && !self.live.is_empty() {
                self.say(format!("{} waits", name_of(&call)));
                self.waiting.push(Waiting {
                    call,
                    verdict: None,
                    until: None,
                });
                return;
            }
            return self.choose_upload(&call);
        };
        let is_live = self.live.iter().any(|live| live.index == step);
        let has_next = self.may_begin();
        let mut events = vec![Go(ANSWER)];
        let is_quiet = step >= self.case.eventful || !is_live;
        match call.ask {
            _ if is_quiet => {}
            Ask::Clock if has_next => events.push(Overlap(ANSWER)),
            _ if self.case.only_clock => {}
            Ask::List => {}
            Ask::Disk => events.push(Full),
            Ask::Clock => {}
            Ask::Head | Ask::Get => events.extend([Go(FAILED), Other, Kill, Interrupt]),
            Ask::Put | Ask::Delete => {
                if call.conditional {
                    events.push(Go(CHANGED));
                }
                events.extend([
                    Go(DENIED),
                    Go(FAILED),
                    Go(LOST),
                    Other,
                    Kill,
                    KillAfter,
                    Interrupt,
                ]);
            }
        }
        let may_overlap = has_next && !is_quiet && !self.case.only_clock;
        if may_overlap && call.ask != Ask::Clock && call.ask != Ask::Disk {
            events.push(Overlap(ANSWER));
            if call.ask.changes() {
                events.extend([Overlap(DENIED), Overlap(LOST)]);
            } else {
                events.push(Overlap(FAILED));
            }
        }
        let event = self.pick(&events);
        if !matches!(call.ask, Ask::Clock | Ask::Disk) || event != Go(ANSWER) {
            self.say(format!("{step}: {}: {event:?}", name_of(&call)));
        }
        self.happen(call, event);
    }

    pub(super) fn pick(&mut self, events: &[Event]) -> Event {
        match events.len() {
            1 => events[0],
            len => events[self.choices.pick(len)],
        }
    }

    /// Chooses what becomes of a request that no step makes.
    pub(super) fn choose_upload(&mut self, call: &Call) {
        let mut events = vec![
            Go(ANSWER),
            Go(DENIED),
            Go(FAILED),
            Go(LOST),
            Other,
            Kill,
            KillAfter,
        ];
        if call.conditional {
            events.push(Go(CHANGED));
        }
        if self.next > self.case.eventful || self.case.only_clock {
            events.truncate(1);
        }
        let event = self.pick(&events);
        self.say(format!("upload: {}: {event:?}", name_of(call)));
        self.happen(call.clone(), event);
    }

    pub(super) fn happen(&mut self, call: Call, event: Event) {
        match event {
            Go(verdict) => self.decide(&call, verdict),
            Other => {
                if let Some(key) = &call.key {
                    self.others += 1;
                    let text = format!("other{}", self.others);
                    self.rig.turnstile.other(key, text.as_bytes());
                }
                self.decide(&call, ANSWER);
            }
            Full => {
                self.full = true;
                self.rig.mount.set_full(true);
                self.injected.push(ErrorKind::Disk);
                self.decide(&call, ANSWER);
            }
            Kill => self.kill(self.next == self.case.steps.len()),
            KillAfter => {
                let judged = self.rig.turnstile.judged();
                self.decide(&call, Verdict::Stall);
                let until = Instant::now() + HANG;
                while self.rig.turnstile.judged() == judged && Instant::now() < until {
                    thread::yield_now();
                }
                self.kill(self.next == self.case.steps.len());
            }
            Overlap(verdict) => self.hold(call, verdict),
            Interrupt => {
                if let Some(step) = call.step {
                    self.interrupt(step, &call);
                }
                self.hold(call, ANSWER);
            }
        }
    }

    /// Lets a request wait while the next step is made.
    pub(super) fn hold(&mut self, call: Call, verdict: Verdict) {
        self.overlapped = true;
        if !self.may_begin() {
            return self.decide(&call, verdict);
        }
        let until = Some(self.next);
        self.waiting.push(Waiting {
            call,
            verdict: Some(verdict),
            until,
        });
        self.begin();
    }

    /// Ends the program that makes a step.
    pub(super) fn interrupt(&mut self, step: usize, call: &Call) {
        let now = self.rig.turnstile.tick();
        {
            let op = &mut self.shared.ops.lock()[step];
            if op.claimed {
                // It is answered first.
                return;
            }
            op.interrupt(now);
            let ends_with_it = ["open", "unlink", "rename", "truncate"].contains(&op.call);
            op.unsent = ends_with_it && !call.ask.changes() && !self.sent[step];
        }
        self.shared.dir.give_up(step);
        let given_up = actor::give_up(&self.rig.mount, &self.shared, step);
        self.leaving.extend(given_up);
    }

    /// Kills the daemon; mounts again unless nothing comes any more.
    pub(super) fn kill(&mut self, is_last: bool) {
        let now = self.rig.turnstile.tick();
        for live in std::mem::take(&mut self.live) {
            let op = &mut self.shared.ops.lock()[live.index];
            op.end.get_or_insert(End::Killed);
            op.ended.get_or_insert(now);
        }
        self.leaving.clear();
        self.waiting.clear();
        self.full = false;
        *self.shared.held.lock() = None;
        let folder = self.rig.kill();
        if is_last {
            self.killed = Some(folder);
            return;
        }
        self.rig
            .turnstile
            .set_open(self.case.mode.write_back && !self.case.mode.lazy);
        self.rig.mount(folder);
        self.rig.turnstile.set_open(false);
        for name in [0, 1] {
            let key = self.shared.names[name].clone();
            self.rig.turnstile.set_open(true);
            let shows = self.rig.mount.cat(&key);
            self.rig.turnstile.set_open(false);
            let journal = self.rig.mount.journal();
            let broken = match shows {
                Ok(shows) => self.past(&journal, |past| past.check_shown(name, &shows)),
                Err(error) => Some(Broken {
                    rule: "errors",
                    how: format!("after a kill {} cannot be read: {error:?}", of(name)),
                }),
            };
            self.broken.extend(broken);
        }
    }
}

pub(super) fn name_of(call: &Call) -> String {
    let key = call
        .key
        .as_ref()
        .map(|key| key.as_str().chars().next().unwrap_or('?'));
    let condition = if call.conditional {
        " if unchanged"
    } else {
        ""
    };
    match key {
        Some(key) => format!("{:?} {key}{condition}", call.ask),
        None => format!("{:?}", call.ask),
    }
}
