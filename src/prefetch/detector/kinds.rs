//! Which kinds of names a scan opens, and so which it may open next.

/// Kinds of names that one scan is seen to open; more are not told apart.
const KINDS: usize = 8;

/// What is known of a record that may be fetched ahead.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// A number for the extension of its name.
    pub class: u64,
    /// A number for its name but for the digits in it.
    pub shape: u64,
    /// The bytes that fetching it costs.
    pub bytes: u64,
}

/// The kinds of names that a scan has opened.
#[derive(Debug, Default)]
pub(super) struct Kinds {
    /// The one shape of all names so far.
    shape: Option<u64>,
    /// Their extensions; empty where there are too many to tell apart, or none was seen yet.
    classes: Vec<u64>,
    are_many: bool,
}

impl Kinds {
    /// Notes a name that was opened.
    pub(super) fn add(&mut self, opened: &Ahead) {
        if self.classes.is_empty() && !self.are_many {
            self.shape = Some(opened.shape);
        } else if self.shape != Some(opened.shape) {
            self.shape = None;
        }
        if !self.are_many && !self.classes.contains(&opened.class) {
            self.classes.push(opened.class);
            self.are_many = self.classes.len() > KINDS;
        }
    }

    /// Returns whether a name is like those that were opened.
    pub(super) fn include(&self, ahead: &Ahead) -> bool {
        match self.shape {
            Some(shape) => shape == ahead.shape,
            None => self.are_many || self.classes.contains(&ahead.class),
        }
    }
}
