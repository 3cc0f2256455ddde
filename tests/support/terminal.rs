//! Programs that need a terminal, driven through tmux as a person would.

use std::path::PathBuf;
use std::process::{Command, Output};

use super::mounted::{MountedSession, eventually};

/// A program in a terminal of its own. Dropping it ends it.
pub struct Terminal {
    /// Where tmux keeps its socket, and the program its own files.
    home: PathBuf,
}

impl Terminal {
    /// Runs a shell command in a mount, in a terminal of 80 by 24; its home is beside the mount.
    #[track_caller]
    pub fn start(mount: &MountedSession, command: &str) -> Self {
        let terminal = Self {
            home: mount.beside(),
        };
        let script = format!("cd {} && exec {command}", mount.path().display());
        let started = terminal.tmux(&["new-session", "-d", "-x", "80", "-y", "24", &script]);
        assert!(started.status.success(), "tmux: {started:?}");
        terminal
    }

    /// Types keys, as `tmux send-keys` names them.
    #[track_caller]
    pub fn types(&self, keys: &[&str]) -> &Self {
        for key in keys {
            let typed = self.tmux(&["send-keys", key]);
            assert!(typed.status.success(), "tmux: {typed:?}");
        }
        self
    }

    /// Waits until the screen shows a text.
    #[track_caller]
    pub fn shows(&self, text: &str) -> &Self {
        eventually(&format!("the screen shows {text}"), || {
            self.screen().contains(text)
        });
        self
    }

    /// Waits until the program has ended.
    #[track_caller]
    pub fn ends(&self) {
        eventually("the program ends", || {
            !self.tmux(&["has-session"]).status.success()
        });
    }

    /// Returns what is on the screen.
    pub fn screen(&self) -> String {
        let shown = self.tmux(&["capture-pane", "-p"]);
        String::from_utf8_lossy(&shown.stdout).into_owned()
    }

    fn tmux(&self, args: &[&str]) -> Output {
        Command::new("tmux")
            .args(["-f", "/dev/null"])
            .args(args)
            .env_remove("TMUX")
            .env("TMUX_TMPDIR", &self.home)
            .env("HOME", &self.home)
            .env("TERM", "screen")
            .env("LC_ALL", "C.UTF-8")
            .output()
            .expect("tmux runs")
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux(&["kill-server"]);
    }
}
