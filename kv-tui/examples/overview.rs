//! Draws the image of the README: `cargo run -p kv-tui --example overview > docs/overview.svg`.

use std::io::{self, Write};

fn main() -> io::Result<()> {
    io::stdout().write_all(kv_tui::dashboard::svg::overview().as_bytes())
}
