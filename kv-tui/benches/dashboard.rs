//! What the dashboard costs: a pass over all partitions, a changed report, and a key press until its frame.
//!
//! `cargo bench -p kv-tui --bench dashboard`

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use kv_core::types::NodeId;
use kv_tui::dashboard::keymap::Key;
use kv_tui::dashboard::model::Model;
use kv_tui::dashboard::msg::{Feed, Msg};
use kv_tui::dashboard::source::fake::{Fake, START_US};
use kv_tui::dashboard::theme::Theme;
use kv_tui::dashboard::update::update;
use kv_tui::dashboard::view::draw;
use kv_tui::observe::health::Health;
use kv_tui::observe::safety::Safety;

/// Nodes and partitions.
const SIZES: [(u64, u32); 2] = [(100, 4096), (1000, 65_536)];

/// Some seconds into the addition of a node.
const SECOND: u64 = 5;

/// The dashboard of a cluster to which a node is being added.
fn session(nodes: u64, partitions: u32) -> (Fake, Model) {
    let fake = Fake::migrating_at(nodes, partitions).expect("a layout");
    let mut model = Model::new("local".to_owned(), Theme::default(), false, (120, 36), START_US);
    for feed in fake.first().into_iter().chain(fake.second(SECOND)) {
        update(&mut model, Msg::Clock(START_US + SECOND * 1_000_000));
        update(&mut model, Msg::Feed(feed));
    }
    (fake, model)
}

/// Reports of the first node, each different from the one before.
fn changing(fake: &Fake) -> impl FnMut() -> Feed {
    let Feed::Snapshot(node, mut reported) = fake.snapshot(NodeId(1), SECOND) else { panic!("not a report") };
    move || {
        reported.keys += 1;
        Feed::Snapshot(node, reported.clone())
    }
}

fn passes(c: &mut Criterion) {
    let mut group = c.benchmark_group("pass over all partitions");
    group.sample_size(20);
    for (nodes, partitions) in SIZES {
        let (_, model) = session(nodes, partitions);
        let cluster = &model.cluster.as_ref().expect("a cluster").snapshot;
        group.bench_function(format!("safety, {partitions} x {nodes}"), |b| b.iter(|| Safety::of(black_box(cluster))));
        group.bench_function(format!("health, {partitions} x {nodes}"), |b| b.iter(|| Health::of(black_box(cluster))));
        group.bench_function(format!("live keys, {partitions} x {nodes}"), |b| {
            b.iter(|| black_box(cluster).live_keys());
        });
    }
    group.finish();
}

fn reports(c: &mut Criterion) {
    let mut group = c.benchmark_group("a report that has changed");
    group.sample_size(20);
    for (nodes, partitions) in SIZES {
        let (fake, mut model) = session(nodes, partitions);
        let mut changed = changing(&fake);
        group.bench_function(format!("{partitions} x {nodes}"), |b| {
            b.iter_batched(&mut changed, |feed| update(&mut model, Msg::Feed(feed)), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn frames(c: &mut Criterion) {
    let mut group = c.benchmark_group("a key until its frame, a report before it");
    group.sample_size(20);
    for (nodes, partitions) in SIZES {
        let (fake, mut model) = session(nodes, partitions);
        let mut changed = changing(&fake);
        for (screen, name) in [('1', "overview"), ('2', "nodes"), ('3', "migration")] {
            update(&mut model, Msg::Key(Key::Char(screen)));
            let mut down = false;
            group.bench_function(format!("{name}, {partitions} x {nodes}"), |b| {
                b.iter_batched(
                    || {
                        down = !down;
                        (changed(), Key::Char(if down { 'j' } else { 'k' }))
                    },
                    |(feed, key)| {
                        update(&mut model, Msg::Feed(feed));
                        update(&mut model, Msg::Key(key));
                        draw(&model)
                    },
                    BatchSize::SmallInput,
                );
            });
        }
        let description = Arc::new((*fake.description()).clone());
        group.bench_function(format!("a new layout, {partitions} x {nodes}"), |b| {
            b.iter(|| {
                update(&mut model, Msg::Feed(Feed::Description(Arc::clone(&description))));
                draw(&model)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, passes, reports, frames);
criterion_main!(benches);
