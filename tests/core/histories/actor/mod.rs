//! A program that makes one step: its system calls, as the kernel hands them to a mount, and what is
//! noted of them.

use std::ffi::OsStr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use bytes::Bytes;
use kvfs::base::caller::{self, Caller};
use kvfs::fs::types::{By, Fh, Ino, Lookup, Resolved};
use kvfs::fs::write::setattr::SetAttr;
use kvfs::fs::{FsError, KvFs};
use kvfs::store::ErrorKind;
use parking_lot::Mutex;

use super::rig::{Mount, patient};
use super::steps::{Name, Step};
use super::turnstile::{self, Ask};

mod directory;

pub use directory::Directory;

/// What became of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Ok,
    /// The last system call that failed, and how.
    Failed(&'static str, i32, Option<ErrorKind>),
    /// The program was ended by a signal.
    Interrupted,
    /// The mount was killed.
    Killed,
}

/// What is noted of a step.
#[derive(Clone, Debug)]
pub struct Op {
    pub step: Step,
    /// When it began.
    pub began: u64,
    /// When it began to open its file.
    pub opens: u64,
    /// When its file was open: from then on it has that file, whatever becomes of the name.
    pub opened: Option<u64>,
    /// When it ended for the program.
    pub ended: Option<u64>,
    pub end: Option<End>,
    /// What a name may have because of it; `None` for none.
    pub makes: Vec<(Name, Option<Bytes>)>,
    /// What it found in the file that it opened.
    pub base: Option<(Name, Bytes)>,
    /// The system call that it is in, and how many came before.
    pub call: &'static str,
    calls: u32,
    /// The call takes effect: who asked is told of that before it can be ended.
    pub claimed: bool,
    /// The number of the call in which the program was ended.
    ended_in: Option<u32>,
    /// It was ended when nothing that changes anything had been sent.
    pub unsent: bool,
    /// It has asked for a deletion.
    pub deletes: bool,
    /// It is not known which name it is about.
    pub unsure: bool,
    /// The descriptor that it is closing.
    pub closing: Option<Fh>,
}

impl Op {
    pub fn new(step: Step, began: u64) -> Self {
        Self {
            step,
            began,
            opens: began,
            opened: None,
            ended: None,
            end: None,
            makes: Vec::new(),
            base: None,
            call: "",
            calls: 0,
            claimed: false,
            ended_in: None,
            unsent: false,
            deletes: false,
            unsure: false,
            closing: None,
        }
    }

    /// Ends the program, which is in a system call.
    pub fn interrupt(&mut self, now: u64) {
        self.end = Some(End::Interrupted);
        self.ended = Some(now);
        self.ended_in = Some(self.calls);
    }

    /// Returns what it makes of a name.
    pub fn makes_of(&self, name: Name) -> impl Iterator<Item = Option<&Bytes>> {
        let made = self.makes.iter().filter(move |(of, _)| *of == name);
        made.map(|(_, content)| content.as_ref())
    }
}

/// A file that is held open.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    pub ino: Ino,
    pub fh: Fh,
    /// The name that leads to it.
    pub name: Option<Name>,
    /// The name that leads to it if a step that may have happened has not.
    pub or: Option<Option<Name>>,
    /// When that began, and when it was open.
    pub opened: (u64, u64),
    pub dirty: bool,
}

/// What all steps of a run share.
#[derive(Debug)]
pub struct Shared {
    pub names: [String; 2],
    pub dir: Directory,
    pub ops: Mutex<Vec<Op>>,
    pub held: Mutex<Option<Held>>,
}

/// Whether a program still waits for its system call.
struct Asking {
    shared: Arc<Shared>,
    index: usize,
    call: u32,
}

impl Caller for Asking {
    fn waits(&self) -> bool {
        self.shared.ops.lock()[self.index].ended_in != Some(self.call)
    }

    fn claim(&self) -> bool {
        let waits = self.waits();
        self.shared.ops.lock()[self.index].claimed = true;
        waits
    }

    fn release(&self) {
        self.shared.ops.lock()[self.index].claimed = false;
    }
}

/// One step under way.
pub struct Actor {
    pub mount: Arc<Mount>,
    pub shared: Arc<Shared>,
    pub index: usize,
}

impl Actor {
    /// Makes the step; returns when all its system calls have.
    pub fn run(self) {
        turnstile::set_step(Some(self.index));
        let step = self.op(|op| op.step);
        let end = match self.perform(step) {
            Ok(()) => End::Ok,
            Err(error) => {
                let kind = match &error {
                    FsError::Store(error) => Some(error.kind()),
                    _ => None,
                };
                End::Failed(self.op(|op| op.call), error.errno(), kind)
            }
        };
        let now = self.mount.turnstile.tick();
        self.op(|op| {
            op.end.get_or_insert(end);
            op.ended.get_or_insert(now);
        });
        self.mount.turnstile.finish(self.mount.number, self.index);
    }

    fn op<T>(&self, work: impl FnOnce(&mut Op) -> T) -> T {
        work(&mut self.shared.ops.lock()[self.index])
    }

    fn is_ended(&self) -> bool {
        self.op(|op| op.end.is_some())
    }

    /// Makes a system call.
    fn call<T>(&self, name: &'static str, work: impl FnOnce(&KvFs) -> T) -> T {
        let call = self.op(|op| {
            (op.call, op.claimed) = (name, false);
            op.calls += 1;
            op.calls
        });
        let asking = Asking {
            shared: Arc::clone(&self.shared),
            index: self.index,
            call,
        };
        caller::with(Box::new(asking), || work(&self.mount.fs))
    }

    fn name(&self, name: Name) -> &OsStr {
        OsStr::new(&self.shared.names[name])
    }

    fn makes(&self, name: Name, content: Option<Bytes>) {
        self.op(|op| op.makes.push((name, content)));
    }

    /// Notes what the file that is held open has.
    fn makes_held(&self, held: &Held) -> Result<(), FsError> {
        let content = self.content(held.fh)?;
        self.op(|op| op.unsure = held.or.is_some());
        for name in [held.name, held.or.flatten()].into_iter().flatten() {
            self.makes(name, Some(content.clone()));
        }
        Ok(())
    }

    fn perform(&self, step: Step) -> Result<(), FsError> {
        let i = self.index;
        match step {
            Step::Store(name) | Step::StoreSync(name) => {
                let (ino, fh) = self.open(name, true, true, false)?;
                self.write(ino, fh, Some(0), &format!("S{i}------"))?;
                self.end(ino, fh, name, step)
            }
            Step::Exclusive(name) | Step::ExclusiveSync(name) => {
                let (ino, fh) = self.open(name, true, false, true)?;
                self.write(ino, fh, Some(0), &format!("X{i}------"))?;
                self.end(ino, fh, name, step)
            }
            Step::Edit(name) | Step::EditSync(name) => {
                let (ino, fh) = self.open(name, false, false, false)?;
                self.write(ino, fh, Some(2), &format!("e{i}"))?;
                self.end(ino, fh, name, step)
            }
            Step::Append(name) | Step::AppendSync(name) => {
                let (ino, fh) = self.open(name, false, false, false)?;
                self.write(ino, fh, None, &format!("+{i}"))?;
                self.end(ino, fh, name, step)
            }
            Step::Hold(name) | Step::Take(name) => {
                let (ino, fh) = self.open(name, true, false, false)?;
                // A file that was just made is to be stored too.
                let made = self.content(fh)?.is_empty();
                let dirty = matches!(step, Step::Take(_)) || made;
                let opened = self.op(|op| (op.opens, op.opened.unwrap_or(op.opens)));
                *self.shared.held.lock() = Some(Held {
                    ino,
                    fh,
                    name: Some(name),
                    or: None,
                    opened,
                    dirty,
                });
                if matches!(step, Step::Take(_)) {
                    self.write(ino, fh, None, &format!("t{i}"))?;
                }
                if dirty {
                    self.makes(name, Some(self.content(fh)?));
                }
                Ok(())
            }
            Step::Change => {
                let Some(held) = *self.shared.held.lock() else {
                    return Ok(());
                };
                self.op(|op| (op.opens, op.opened) = (held.opened.0, Some(held.opened.1)));
                if let Some(held) = &mut *self.shared.held.lock() {
                    held.dirty = true;
                }
                self.write(held.ino, held.fh, None, &format!("c{i}"))?;
                self.makes_held(&held)
            }
            Step::Close => {
                let Some(held) = self.shared.held.lock().take() else {
                    return Ok(());
                };
                self.op(|op| (op.opens, op.opened) = (held.opened.0, Some(held.opened.1)));
                if held.dirty {
                    self.makes_held(&held)?;
                }
                self.close(held.fh)
            }
            Step::Unlink(name) => {
                let Some(ino) = self.lookup(name)? else {
                    return Err(FsError::NoEntry);
                };
                self.makes(name, None);
                let path = self.name(name);
                let _dir = self.shared.dir.lock(self.index);
                self.call("unlink", |fs| {
                    let removed = fs.unlink(Ino::ROOT, path, patient());
                    fs.forget(ino, 1);
                    removed
                })
            }
            Step::Rename(from, to) => {
                if self.lookup(from)?.is_none() {
                    return Err(FsError::NoEntry);
                }
                let _ = self.lookup(to)?;
                self.makes(from, None);
                let (from, to) = (self.name(from), self.name(to));
                let _dir = self.shared.dir.lock(self.index);
                self.call("rename", |fs| {
                    fs.rename(Ino::ROOT, from, Ino::ROOT, to, false, patient())
                })
            }
            Step::Truncate(name) => {
                let set = SetAttr {
                    size: Some(5 - i as u64),
                    ..SetAttr::default()
                };
                let mut again = false;
                loop {
                    let looked = Instant::now();
                    let Some(ino) = self.lookup(name)? else {
                        return Err(FsError::NoEntry);
                    };
                    // The kernel looks the name up once more for the same call.
                    let resolved = if again {
                        Resolved::LookedUp(looked)
                    } else {
                        Resolved::Unknown(Instant::now())
                    };
                    let by = By::Name(resolved);
                    let cut = self.call("truncate", |fs| fs.setattr_by(ino, &set, by, patient()));
                    match cut {
                        Err(error) if !again && error.errno() == libc::ESTALE => again = true,
                        cut => return cut.map(drop),
                    }
                }
            }
        }
    }

    fn lookup(&self, name: Name) -> Result<Option<Ino>, FsError> {
        let path = self.name(name);
        let found = self.call("lookup", |fs| fs.lookup(Ino::ROOT, path, patient()))?;
        if self.is_ended() {
            return Err(FsError::WrongKind(libc::EINTR));
        }
        Ok(match found {
            Lookup::Found(reply) => Some(reply.attr.ino),
            Lookup::Absent(_) => None,
        })
    }

    /// Opens a file for writing as the kernel does, which looks a name up once more if the file it
    /// meant has gone.
    fn open(
        &self,
        name: Name,
        create: bool,
        empty: bool,
        exclusive: bool,
    ) -> Result<(Ino, Fh), FsError> {
        let mut again = 0;
        let path = self.name(name);
        let (ino, fh) = loop {
            let opened = match self.lookup(name)? {
                Some(_) if exclusive => return Err(FsError::WrongKind(libc::EEXIST)),
                Some(ino) => self.call("open", |fs| {
                    let opened = fs.open_writing(ino, empty, patient())?;
                    Ok((ino, opened.fh))
                }),
                None if create => {
                    let _dir = self.shared.dir.lock(self.index);
                    // Another has made it meanwhile.
                    if self.lookup(name)?.is_some() {
                        continue;
                    }
                    self.call("open", |fs| {
                        let made =
                            fs.create(Ino::ROOT, path, 0o644, exclusive, empty, patient())?;
                        Ok((made.entry.attr.ino, made.opened.fh))
                    })
                }
                None => return Err(FsError::NoEntry),
            };
            match opened {
                Err(FsError::Stale) if again == 0 => again += 1,
                opened => break opened?,
            }
        };
        if self.is_ended() {
            // As the kernel's side does with an answer that nobody waits for.
            self.mount.fs.release(fh);
            return Err(FsError::WrongKind(libc::EINTR));
        }
        let now = self.mount.turnstile.tick();
        if !empty {
            let base = self.content(fh)?;
            self.op(|op| op.base = Some((name, base)));
        }
        self.op(|op| op.opened = Some(now));
        Ok((ino, fh))
    }

    /// Writes at `offset`, or at the end.
    fn write(&self, ino: Ino, fh: Fh, offset: Option<u64>, text: &str) -> Result<(), FsError> {
        let written = self.call("write", |fs| {
            let at = match offset {
                Some(at) => at,
                None => fs.getattr(ino, patient())?.attr.size,
            };
            fs.write(fh, at, text.as_bytes(), patient())
        });
        written.inspect_err(|_| {
            if self.shared.held.lock().is_none() {
                self.mount.fs.release(fh);
            }
        })
    }

    fn content(&self, fh: Fh) -> Result<Bytes, FsError> {
        self.mount.fs.read(fh, 0, 1000, patient())
    }

    /// Syncs if the step does, and closes.
    fn end(&self, _ino: Ino, fh: Fh, name: Name, step: Step) -> Result<(), FsError> {
        self.makes(name, Some(self.content(fh)?));
        let syncs = step.writes().is_some_and(|(_, syncs)| syncs);
        if syncs && !self.is_ended() {
            self.mount.turnstile.pause(self.mount.number, Ask::Disk);
            let synced = self.call("fsync", |fs| fs.fsync(fh, patient()));
            let closed = self.close(fh);
            return synced.and(closed);
        }
        self.close(fh)
    }

    /// Closes a descriptor. The kernel waits for the verdict, unless the program is ended meanwhile:
    /// then it gives up the file while that is still under way ([`give_up`]).
    fn close(&self, fh: Fh) -> Result<(), FsError> {
        self.mount.turnstile.pause(self.mount.number, Ask::Disk);
        self.op(|op| op.closing = Some(fh));
        let verdict = self.call("close", |fs| fs.flush(fh, patient()));
        if self.op(|op| op.closing.take()).is_some() {
            self.mount.fs.release(fh);
        }
        verdict
    }
}

/// Does what the kernel does for a program that was ended while it closed a file.
pub fn give_up(mount: &Arc<Mount>, shared: &Shared, index: usize) -> Option<JoinHandle<()>> {
    let fh = shared.ops.lock()[index].closing.take()?;
    let fs = Arc::clone(&mount.fs);
    Some(thread::spawn(move || {
        turnstile::set_step(Some(index));
        fs.release(fh);
    }))
}
