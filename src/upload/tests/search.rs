//! Random sequences of closes, failures, renames and restarts.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Close(u8),
    Fail(u8),
    Lose,
    Wait(u8),
    Discard(u8),
    Rename(u8, u8),
    Restart,
}

fn op() -> impl Strategy<Value = Op> {
    let key = || 0_u8..3;
    prop_oneof![
        8 => key().prop_map(Op::Close),
        2 => (0_u8..4).prop_map(Op::Fail),
        1 => Just(Op::Lose),
        2 => key().prop_map(Op::Wait),
        1 => key().prop_map(Op::Discard),
        2 => (key(), key()).prop_map(|(from, to)| Op::Rename(from, to)),
        2 => Just(Op::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever fails on the way and however often the daemon is killed: in the end the store has
    /// of every key what was closed last.
    #[test]
    fn in_the_end_the_store_has_what_was_closed_last(ops in proptest::collection::vec(op(), 1..25)) {
        let mut bench = Bench::new();
        let mut last: HashMap<String, String> = HashMap::new();
        let name = |n: u8| format!("k{n}");
        for (n, op) in ops.into_iter().enumerate() {
            match op {
                Op::Close(k) => {
                    bench.close(&name(k), &format!("text {n}"));
                    last.insert(name(k), format!("text {n}"));
                }
                Op::Fail(n) => bench.store.fail_next(Call::Put, n.into(), ErrorKind::Network),
                Op::Lose => bench.store.lose_answers(Call::Put, 1, ErrorKind::Timeout),
                Op::Wait(k) => {
                    bench.uploader.wait_key(&key(&name(k)), soon()).expect("uploaded");
                    prop_assert_eq!(bench.text(&name(k)), last.get(&name(k)).cloned());
                }
                Op::Discard(k) => {
                    let key = key(&name(k));
                    let entered = bench.uploader.enter(&[&key], Change::Name, soon()).expect("held");
                    bench.memory.delete(&key, soon()).expect("deleted");
                    entered.discard(&key, || true);
                    last.remove(&name(k));
                }
                Op::Rename(from, to) if from != to => {
                    let (old, new) = (key(&name(from)), key(&name(to)));
                    let entered = bench.uploader.enter(&[&old, &new], Change::Name, soon()).expect("held");
                    if let Some(text) = last.remove(&name(from)) {
                        bench.close(&name(to), &text);
                        bench.memory.delete(&old, soon()).expect("deleted");
                        entered.discard(&old, || true);
                        last.insert(name(to), text);
                    }
                }
                Op::Rename(..) => {}
                Op::Restart => bench.restart(),
            }
        }
        prop_assert!(bench.uploader.wait_all(soon()).is_empty());
        for k in 0..3 {
            prop_assert_eq!(bench.text(&name(k)), last.get(&name(k)).cloned());
        }
        prop_assert!(bench.folder.journal().entries().is_empty());
        prop_assert_eq!(bench.folder.budget().used(), 0);
    }
}
