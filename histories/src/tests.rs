use proptest::prelude::*;

use super::*;

const KEY: &str = "k";

fn operation(client: u64, (called, returned): (u64, u64), action: Action, outcome: Outcome) -> Operation {
    let returned = (outcome != Outcome::Unknown).then_some(returned);
    Operation { client, key: KEY.to_owned(), action, called, returned, outcome }
}

fn put(value: &str, when: Condition) -> Action {
    Action::Put { value: value.to_owned(), when, expires: None }
}

fn got(value: Option<&str>) -> Outcome {
    Outcome::Got { value: value.map(str::to_owned) }
}

fn failed(found: Option<&str>) -> Outcome {
    Outcome::Failed { found: Some(found.map(str::to_owned)) }
}

fn written(at: (u64, u64), value: &str) -> Operation {
    operation(1, at, put(value, Condition::Always), Outcome::Done)
}

fn seen(at: (u64, u64), value: Option<&str>) -> Operation {
    operation(2, at, Action::Get, got(value))
}

fn deleted(at: (u64, u64)) -> Operation {
    operation(3, at, Action::Delete { when: Condition::Always }, Outcome::Done)
}

fn unknown(called: u64, action: Action) -> Operation {
    operation(4, (called, 0), action, Outcome::Unknown)
}

#[track_caller]
fn is_good(history: &[Operation]) {
    assert_eq!(check(history), Ok(()));
}

/// The history fails at the operation with this number.
#[track_caller]
fn is_bad(history: &[Operation], at: usize) {
    match check(history) {
        Err(Violation::Impossible { operation, .. }) => assert_eq!(*operation, history[at]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn reads_show_what_was_written_last() {
    is_good(&[]);
    is_good(&[seen((0, 1), None), written((2, 3), "a"), seen((4, 5), Some("a")), deleted((6, 7)), seen((8, 9), None)]);
    is_bad(&[written((0, 1), "a"), seen((2, 3), None)], 1);
    is_bad(&[written((0, 1), "a"), written((2, 3), "b"), seen((4, 5), Some("a"))], 2);
    is_bad(&[written((0, 1), "a"), deleted((2, 3)), seen((4, 5), Some("a"))], 2);
    is_bad(&[seen((0, 1), Some("a")), written((2, 3), "a")], 0);
    is_bad(&[seen((0, 1), Some("never written"))], 0);
}

#[test]
fn what_is_concurrent_may_come_in_any_order_and_only_in_one() {
    let both = [written((0, 10), "a"), written((0, 10), "b")];
    for last in ["a", "b"] {
        is_good(&[both[0].clone(), both[1].clone(), seen((11, 12), Some(last)), seen((13, 14), Some(last))]);
    }
    is_bad(&[both[0].clone(), both[1].clone(), seen((11, 12), Some("a")), seen((13, 14), Some("b"))], 3);
    // Two readers of one concurrent write see it in the order of their reads.
    let slow = written((0, 100), "a");
    is_good(&[slow.clone(), seen((1, 2), None), seen((3, 4), Some("a")), seen((5, 6), Some("a"))]);
    is_bad(&[slow, seen((1, 2), Some("a")), seen((3, 4), None)], 2);
    // What ends at the moment at which another one begins is concurrent with it.
    is_good(&[written((0, 5), "a"), seen((5, 6), None)]);
}

#[test]
fn what_is_unknown_takes_effect_late_or_never_but_once() {
    let lost = unknown(0, put("a", Condition::Always));
    is_good(&[lost.clone(), seen((1, 2), None), seen((3, 4), None)]);
    is_good(&[lost.clone(), seen((1, 2), None), written((3, 4), "b"), seen((5, 6), Some("a"))]);
    is_bad(&[lost.clone(), seen((1, 2), Some("a")), written((3, 4), "b"), seen((5, 6), Some("a"))], 3);
    is_bad(&[seen((0, 1), Some("a")), unknown(2, put("a", Condition::Always))], 0);
    let gone = unknown(0, Action::Delete { when: Condition::Always });
    is_good(&[gone.clone(), written((1, 2), "a"), seen((3, 4), Some("a")), seen((5, 6), None)]);
    is_bad(&[gone, written((1, 2), "a"), seen((3, 4), None), written((5, 6), "b"), seen((7, 8), None)], 4);
}

#[test]
fn conditions_hold_or_fail_for_a_reason() {
    let first = |at, value| operation(1, at, put(value, Condition::Absent), Outcome::Done);
    let late = |at, value, found| operation(2, at, put(value, Condition::Absent), failed(found));
    is_good(&[first((0, 1), "a"), late((2, 3), "b", Some("a")), seen((4, 5), Some("a"))]);
    is_bad(&[first((0, 1), "a"), first((2, 3), "b")], 1);
    is_bad(&[late((0, 1), "a", None)], 0);
    is_bad(&[first((0, 1), "a"), late((2, 3), "b", Some("c"))], 1);
    // Of two that are concurrent one fails.
    is_bad(&[first((0, 10), "a"), first((0, 11), "b")], 1);
    is_good(&[first((0, 10), "a"), late((0, 11), "b", Some("a"))]);

    let swap = |at, from: &str, to, outcome| operation(5, at, put(to, Condition::Holds(from.to_owned())), outcome);
    is_good(&[first((0, 1), "a"), swap((2, 3), "a", "b", Outcome::Done), seen((4, 5), Some("b"))]);
    is_good(&[first((0, 1), "a"), written((2, 3), "c"), swap((4, 5), "a", "b", failed(Some("c")))]);
    is_bad(&[first((0, 1), "a"), written((2, 3), "c"), swap((4, 5), "a", "b", Outcome::Done)], 2);
    is_bad(&[first((0, 1), "a"), swap((2, 3), "a", "b", failed(Some("a")))], 1);
    // A lost update: both saw the same and both succeeded.
    is_bad(&[first((0, 1), "a"), swap((2, 9), "a", "b", Outcome::Done), swap((2, 10), "a", "c", Outcome::Done)], 2);
    let remove = |at, value: &str, outcome| {
        operation(6, at, Action::Delete { when: Condition::Holds(value.to_owned()) }, outcome)
    };
    is_good(&[first((0, 1), "a"), remove((2, 3), "a", Outcome::Done), remove((4, 5), "a", failed(None))]);
    is_bad(&[first((0, 1), "a"), remove((2, 3), "a", Outcome::Done), remove((4, 5), "a", Outcome::Done)], 2);
    // A condition that failed without saying what it found: something must have been there.
    let silent = operation(7, (4, 5), put("z", Condition::Absent), Outcome::Failed { found: None });
    is_good(&[unknown(0, put("a", Condition::Always)), silent.clone()]);
    is_bad(&[silent], 0);
    let again = |at, outcome| operation(8, at, put("y", Condition::StillAbsent), outcome);
    is_good(&[written((0, 1), "a"), deleted((2, 3)), again((4, 5), failed(None))]);
    is_good(&[again((0, 1), Outcome::Done)]);
    is_bad(&[written((0, 1), "a"), again((2, 3), Outcome::Done)], 1);
}

#[test]
fn what_was_refused_never_happens() {
    let refused = operation(1, (0, 1), put("a", Condition::Always), Outcome::Refused);
    is_good(&[refused.clone(), seen((2, 3), None)]);
    is_bad(&[refused, seen((2, 3), Some("a"))], 1);
}

#[test]
fn a_value_goes_by_itself_when_its_time_is_over() {
    let expires = Some(Expiry { earliest: 100, latest: 120 });
    let action = Action::Put { value: "a".to_owned(), when: Condition::Always, expires };
    let short = operation(1, (0, 1), action, Outcome::Done);
    is_good(&[short.clone(), seen((50, 51), Some("a")), seen((110, 111), None), seen((112, 113), None)]);
    is_good(&[short.clone(), seen((110, 111), Some("a")), seen((118, 119), None)]);
    is_good(&[short.clone(), seen((119, 200), Some("a"))]);
    is_bad(&[short.clone(), seen((50, 51), None)], 1);
    is_bad(&[short.clone(), seen((121, 130), Some("a"))], 1);
    is_bad(&[short.clone(), seen((105, 106), None), seen((107, 108), Some("a"))], 2);
    // One of unknown outcome has taken a value's place, and is gone.
    let lost = Action::Put { value: "c".to_owned(), when: Condition::Always, expires };
    is_good(&[written((0, 1), "b"), unknown(2, lost), seen((10, 11), Some("b")), seen((130, 131), None)]);
    let first = operation(2, (105, 106), put("b", Condition::Absent), Outcome::Done);
    is_good(&[short.clone(), first.clone(), seen((107, 108), Some("b"))]);
    let early = operation(2, (50, 51), put("b", Condition::Absent), Outcome::Done);
    is_bad(&[short, early], 1);
}

/// Each of them could be done before any end: what that leaves open must not double with each.
#[test]
fn many_unknown_outcomes_are_judged_soon() {
    let delete = Action::Delete { when: Condition::Always };
    let mut history: Vec<_> = (0..60).map(|at| unknown(at, delete.clone())).collect();
    for number in 0..60 {
        let at = 100 + 10 * number;
        let guess = unknown(at, put(&format!("u{number}"), Condition::Always));
        let late = Action::Delete { when: Condition::Holds(format!("u{number}")) };
        let shown = [seen((at + 5, at + 6), Some(&format!("u{number}"))), seen((at + 7, at + 8), None)];
        history.extend([guess, written((at + 1, at + 3), &format!("w{number}")), unknown(at + 6, late)]);
        history.extend(shown);
    }
    is_good(&history);
    // A delete is left, and no put.
    let last = history.len();
    history.extend([written((900, 901), "x"), seen((902, 903), Some("x")), seen((904, 905), None)]);
    is_good(&history);
    history.push(seen((906, 907), Some("u3")));
    is_bad(&history, last + 3);
}

#[test]
fn keys_are_judged_one_by_one_and_the_first_fault_is_named() {
    let mut other = seen((2, 3), None);
    other.key = "other".to_owned();
    is_good(&[written((0, 1), "a"), other]);
    let mut early = seen((10, 11), Some("x"));
    early.key = "early".to_owned();
    let history = [written((0, 1), "a"), seen((12, 13), None), early];
    is_bad(&history, 2);
    let text = check(&history[..2]).unwrap_err().to_string();
    assert_eq!(text, "not linearizable: client 2 at 12: get of k -> got nothing at 13; just before, k could hold a");
}

#[test]
fn what_cannot_be_judged_is_said() {
    let twice = [written((0, 1), "a"), written((2, 3), "a")];
    assert!(matches!(check(&twice), Err(Violation::Malformed { .. })));
    assert!(matches!(check(&[written((5, 1), "a")]), Err(Violation::Malformed { .. })));
    let many: Vec<_> = (0..200).map(|_| unknown(0, Action::Delete { when: Condition::Always })).collect();
    assert!(matches!(check(&many), Err(Violation::Malformed { .. })));
}

#[test]
fn a_history_is_written_and_read_again() {
    let expires = Some(Expiry { earliest: 7, latest: 9 });
    let history = [
        written((0, 1), "a"),
        operation(
            1,
            (2, 3),
            Action::Put { value: "b".to_owned(), when: Condition::Absent, expires },
            failed(Some("a")),
        ),
        operation(
            1,
            (4, 5),
            Action::Delete { when: Condition::Holds("a".to_owned()) },
            Outcome::Failed { found: None },
        ),
        unknown(6, put("c", Condition::StillAbsent)),
        seen((7, 8), None),
        operation(2, (7, 8), Action::Get, Outcome::Refused),
    ];
    let mut bytes = Vec::new();
    write(&mut bytes, &history).unwrap();
    assert_eq!(read(&bytes[..]).unwrap(), history);
    let first = String::from_utf8(bytes.clone()).unwrap();
    assert_eq!(
        first.lines().next().unwrap(),
        r#"{"client":1,"key":"k","action":"put","value":"a","when":"always","expires":null,"called":0,"returned":1,"outcome":"done"}"#
    );
    bytes.extend_from_slice(b"{\"client\":\n");
    assert!(read(&bytes[..]).unwrap_err().to_string().starts_with("line 7 is no operation"));
}

/// One copy, on which one operation is carried out after the other. What the operation finds, and what is held then.
fn carry_out(action: &Action, held: Option<&str>) -> (Outcome, Option<String>) {
    let (when, then) = match action {
        Action::Get => return (got(held), held.map(str::to_owned)),
        Action::Put { value, when, .. } => (when, Some(value.clone())),
        Action::Delete { when } => (when, None),
    };
    let holds = match when {
        Condition::Always => true,
        Condition::Absent | Condition::StillAbsent => held.is_none(),
        Condition::Holds(value) => held == Some(value.as_str()),
    };
    if holds { (Outcome::Done, then) } else { (failed(held), held.map(str::to_owned)) }
}

/// Whether some order of the operations explains all outcomes: every order is tried.
fn is_explained(rest: &[Operation], held: Option<&str>) -> bool {
    if rest.iter().all(|operation| operation.outcome == Outcome::Unknown) {
        return true;
    }
    let ends = rest.iter().filter_map(|operation| operation.returned).min();
    (0..rest.len()).any(|index| {
        let next = &rest[index];
        // Nothing comes before what had ended when it was called.
        if ends.is_some_and(|ends| ends < next.called) {
            return false;
        }
        let (outcome, then) = carry_out(&next.action, held);
        let fits = next.outcome == Outcome::Unknown || next.outcome == outcome;
        let mut others = rest.to_vec();
        others.remove(index);
        fits && is_explained(&others, then.as_deref())
    })
}

fn conditions() -> impl Strategy<Value = Condition> {
    prop_oneof![
        3 => Just(Condition::Always),
        1 => Just(Condition::Absent),
        2 => (0..4_usize).prop_map(|value| Condition::Holds(format!("v{value}"))),
    ]
}

/// An action, and the outcome of a write that comes to nothing or a read of something.
fn actions(number: usize) -> impl Strategy<Value = (Action, u8, Option<usize>)> {
    let action = prop_oneof![
        2 => Just(Action::Get),
        3 => conditions().prop_map(move |when| put(&format!("v{number}"), when)),
        1 => conditions().prop_map(|when| Action::Delete { when }),
    ];
    (action, 0..4_u8, proptest::option::weighted(0.7, 0..4_usize))
}

/// Operations whose outcomes chance decides: most of them are impossible.
fn histories() -> impl Strategy<Value = Vec<Operation>> {
    let one = |number: usize| (actions(number), 0..12_u64, 1..6_u64);
    (one(0), one(1), one(2), one(3), one(4)).prop_map(|(a, b, c, d, e)| {
        let outcome = |action: &Action, kind: u8, value: Option<usize>| {
            let value = value.map(|value| format!("v{value}"));
            match (action, kind) {
                (Action::Get, _) => got(value.as_deref()),
                (_, 0) => Outcome::Unknown,
                (_, 1) => failed(value.as_deref()),
                _ => Outcome::Done,
            }
        };
        let build = |((action, kind, value), called, lasts): ((Action, u8, Option<usize>), u64, u64)| {
            let outcome = outcome(&action, kind, value);
            operation(0, (called, called + lasts), action, outcome)
        };
        [a, b, c, d, e].map(build).to_vec()
    })
}

/// What clients are told by one copy, with calls and ends around the moments at which it carries their operations out.
fn true_histories() -> impl Strategy<Value = Vec<Operation>> {
    let one = ((0..4_u8, conditions(), 0..40_usize), 0..30_u64, 0..30_u64, any::<bool>());
    proptest::collection::vec(one, 1..40).prop_map(|all| {
        let mut held: Option<String> = None;
        let mut history = Vec::new();
        for (number, ((kind, when, of), before, behind, is_lost)) in all.into_iter().enumerate() {
            let when = match when {
                Condition::Holds(_) => held.clone().map_or(Condition::Holds(format!("v{of}")), Condition::Holds),
                when => when,
            };
            let action = match kind {
                0 | 1 => Action::Get,
                2 => put(&format!("v{number}"), when),
                _ => Action::Delete { when },
            };
            let at = 100 + 10 * number as u64;
            let (outcome, then) = carry_out(&action, held.as_deref());
            held = then;
            // The client may never hear of it.
            let outcome = if is_lost && behind < 3 && action != Action::Get { Outcome::Unknown } else { outcome };
            history.push(operation(number as u64, (at - before, at + behind), action, outcome));
        }
        history
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn it_judges_as_all_orders_together_do(history in histories()) {
        prop_assert_eq!(check(&history).is_ok(), is_explained(&history, None), "{:#?}", check(&history));
    }

    #[test]
    fn what_one_copy_says_is_good(history in true_histories()) {
        prop_assert_eq!(check(&history), Ok(()));
    }
}
