//! Single plans, as people would check them by hand.

use super::*;

#[test]
fn a_fourth_node_takes_exactly_its_share() {
    let layout = layout(256, 3, &[("a", 1.0, false), ("b", 1.0, false), ("c", 1.0, false), ("d", 1.0, true)]);
    let plan = plan(&layout, &[Change::Add { node: NodeId(4) }]).unwrap();
    assert_eq!((plan.moves.len(), plan.minimum, plan.parent), (192, 192, Epoch(3)));
    let target = target(&layout, &plan);
    assert!(held(&target).values().all(|&counts| counts == (192, 64)), "{target}");
    // And back: the same moves, the other way.
    let back = super::plan(&target, &[Change::Remove { node: NodeId(4) }]).unwrap();
    assert_eq!((back.moves.len(), back.minimum), (192, 192));
}
