//! The choices of one run, and how all runs are found: each choice beside the first alternative is
//! a deviation, and every run with at most so many of them is made.

/// One choice that a run has made.
#[derive(Clone, Debug)]
struct Made {
    taken: usize,
    of: usize,
}

/// The choices of one run: given ones first, then always the first alternative.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    given: Vec<usize>,
    made: Vec<Made>,
}

impl Choices {
    pub fn new(given: Vec<usize>) -> Self {
        Self {
            given,
            made: Vec::new(),
        }
    }

    /// Chooses one of `of` alternatives.
    pub fn pick(&mut self, of: usize) -> usize {
        let given = self.given.get(self.made.len()).copied().unwrap_or(0);
        let taken = if given < of { given } else { 0 };
        self.made.push(Made { taken, of });
        taken
    }

    /// Returns how many choices were not the first alternative.
    pub fn deviations(&self) -> usize {
        self.made.iter().filter(|made| made.taken > 0).count()
    }

    /// Returns the runs that are like this one up to where it followed no given choice, and deviate
    /// there for the first time.
    pub fn others(&self, most_deviations: usize) -> Vec<Vec<usize>> {
        if self.deviations() >= most_deviations {
            return Vec::new();
        }
        let mut others = Vec::new();
        for at in self.given.len()..self.made.len() {
            for taken in 1..self.made[at].of {
                let mut given: Vec<usize> = self.made[..at].iter().map(|made| made.taken).collect();
                given.push(taken);
                others.push(given);
            }
        }
        others
    }

    /// Returns the choices up to the last deviation.
    pub fn text(&self) -> String {
        let last = self.made.iter().rposition(|made| made.taken > 0);
        let taken = self.made[..last.map_or(0, |last| last + 1)].iter();
        let taken: Vec<String> = taken.map(|made| made.taken.to_string()).collect();
        taken.join(".")
    }
}
