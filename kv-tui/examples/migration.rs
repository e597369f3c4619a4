//! Draws the image of a migration from what the program shows: a temporary local cluster of real processes is started and
//! filled, a node is added with a limit on copying, and the dashboard of the live operation is drawn while it moves.
//!
//! `cargo run -p kv-tui --example migration > docs/migration.svg`

use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use kv_tui::dashboard::keymap::Key;
use kv_tui::dashboard::model::Model;
use kv_tui::dashboard::msg::{Feed, Msg};
use kv_tui::dashboard::source::Source;
use kv_tui::dashboard::source::grpc::Grpc;
use kv_tui::dashboard::svg::svg;
use kv_tui::dashboard::theme::{Palette, Theme};
use kv_tui::dashboard::update::update;
use kv_tui::dashboard::view::draw;
use kv_tui::output::time::now_us;
use tokio::sync::mpsc;

/// Records of a package catalogue.
const RECORDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/packages.ndjson.gz");

/// What each node copies in a second, so that the moves take long enough to be looked at.
const LIMIT: &str = "256KiB/s";

/// The part of the work that is done in the image.
const SHARE: f64 = 0.5;

/// How long it may take until then.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    // The nodes are processes of this program, as those of kv-tui are of that one.
    let mut arguments = std::env::args_os();
    let program = arguments.next();
    match arguments.next() {
        Some(first) if first == kv_tui::NODE_MODE => kv_node::run(program.into_iter().chain(arguments)),
        Some(_) => kv_tui::main(),
        None => match draw_migration() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                drop(writeln!(io::stderr(), "{error}"));
                ExitCode::FAILURE
            }
        },
    }
}

fn draw_migration() -> io::Result<()> {
    let folder = std::env::temp_dir().join(format!("kv-image-{}", std::process::id()));
    let drawn = moving(&folder);
    drop(run(&folder, &["local", "destroy", "--yes"]));
    drop(std::fs::remove_dir_all(&folder));
    io::stdout().write_all(drawn?.as_bytes())
}

/// Runs this program on the cluster in a folder; gives what it prints.
fn run(folder: &Path, arguments: &[&str]) -> io::Result<String> {
    let done = Command::new(std::env::current_exe()?)
        .args(arguments)
        .env_remove("KV_CONNECT")
        .env("KV_LOCAL_DIR", folder)
        .stderr(Stdio::inherit())
        .output()?;
    if done.status.success() {
        Ok(String::from_utf8_lossy(&done.stdout).into_owned())
    } else {
        Err(io::Error::other(format!("{} has failed", arguments.join(" "))))
    }
}

fn moving(folder: &Path) -> io::Result<String> {
    let started = run(folder, &["local", "start", "--output", "json"])?;
    let address =
        |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["address"].as_str().map(str::to_owned);
    let addresses: Vec<String> = started.lines().filter_map(address).collect();
    run(folder, &["exec", "import", RECORDS])?;
    let (feed, mut feeds) = mpsc::channel(1024);
    let (_asks, asked) = mpsc::channel(1);
    Box::new(Grpc { addresses, read_only: true }).start(feed, asked)?;
    let theme = Theme { palette: Palette::Dark, ..Theme::default() };
    let mut model = Model::new("local".to_owned(), theme, false, (120, 36), now_us());
    update(&mut model, Msg::Key(Key::Char('3')));
    let deadline = Instant::now() + PATIENCE;
    let mut asks = Some(["exec", "node", "add", "--limit", LIMIT]);
    let mut adding = None;
    while Instant::now() < deadline {
        let Some(reported) = feeds.blocking_recv() else { break };
        // When every member has reported, the addition begins.
        let seen = matches!(reported, Feed::Snapshot(..));
        update(&mut model, Msg::Clock(now_us()));
        update(&mut model, Msg::Feed(reported));
        let Some(cluster) = model.cluster.as_ref().filter(|_| seen) else { continue };
        if let Some(arguments) = asks.take_if(|_| cluster.tracks.len() == 3 && cluster.live_keys() == Some(20_000)) {
            let folder = folder.to_owned();
            adding = Some(std::thread::spawn(move || run(&folder, &arguments)));
        }
        let progress = cluster.operations.progress.as_ref();
        if progress.is_some_and(|progress| progress.share() >= SHARE && progress.rate() > 0.0) {
            let drawn = svg(&draw(&model).buffer);
            if let Some(adding) = adding {
                adding.join().map_err(|_panic| io::Error::other("the addition has failed"))??;
            }
            return Ok(drawn);
        }
    }
    Err(io::Error::other("the operation makes no progress; see the logs of the nodes"))
}
