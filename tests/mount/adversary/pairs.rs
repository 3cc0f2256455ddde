//! Few cases that have every pair of values of any two dimensions.

/// Returns cases, one number below its dimension's size for each dimension, such that every two
/// values of two dimensions are together in one of them. The same ones for the same seed.
pub fn all_pairs(sizes: &[usize], seed: u64) -> Vec<Vec<usize>> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut missing = std::collections::HashSet::new();
    for a in 0..sizes.len() {
        for b in a + 1..sizes.len() {
            for x in 0..sizes[a] {
                for y in 0..sizes[b] {
                    missing.insert((a, x, b, y));
                }
            }
        }
    }
    let pairs_of = |case: &[usize]| {
        let mut pairs = Vec::new();
        for a in 0..case.len() {
            for b in a + 1..case.len() {
                pairs.push((a, case[a], b, case[b]));
            }
        }
        pairs
    };
    let mut cases = Vec::new();
    while let Some(&(a, x, b, y)) = missing.iter().min() {
        let mut best: (usize, Vec<usize>) = (0, Vec::new());
        for _ in 0..60 {
            let mut case: Vec<usize> = sizes.iter().map(|size| dice.usize(..*size)).collect();
            (case[a], case[b]) = (x, y);
            let new = pairs_of(&case)
                .iter()
                .filter(|pair| missing.contains(*pair))
                .count();
            if new > best.0 {
                best = (new, case);
            }
        }
        for pair in pairs_of(&best.1) {
            missing.remove(&pair);
        }
        cases.push(best.1);
    }
    cases
}

/// Returns the cases in which at most one dimension has another value than its first.
pub fn one_at_a_time(sizes: &[usize]) -> Vec<Vec<usize>> {
    let mut cases = vec![vec![0; sizes.len()]];
    for (at, size) in sizes.iter().enumerate() {
        for value in 1..*size {
            let mut case = vec![0; sizes.len()];
            case[at] = value;
            cases.push(case);
        }
    }
    cases
}

/// Returns the case of that number.
pub fn nth(sizes: &[usize], mut number: usize) -> Vec<usize> {
    let digit = |size: &usize| {
        let digit = number % size;
        number /= size;
        digit
    };
    sizes.iter().map(digit).collect()
}

/// Returns the number of a case.
pub fn number_of(sizes: &[usize], case: &[usize]) -> usize {
    let digits = sizes.iter().zip(case).rev();
    digits.fold(0, |number, (size, digit)| number * size + digit)
}
