//! The cluster printed once, for pipes and for terminals that are not taken: the overview and the operation as text.

use std::sync::Arc;

use kv_core::types::NodeId;
use kv_proto::client::Client;
use kv_proto::v1;
use ratatui::buffer::Buffer;
use serde_json::Value;

use super::model::Model;
use super::msg::{Feed, Msg};
use super::theme::{Palette, Theme};
use super::update::update;
use super::view::draw;
use crate::error::{Class, CommandError};
use crate::output::bytes::printable;
use crate::output::time::now_us;
use crate::output::{Human, Item, Sink};
use crate::run::op::document;
use crate::run::report::Report;

/// The size of the text when no terminal says one.
const SIZE: (u16, u16) = (120, 36);

/// How long a member may take to report.
const REPORT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(2);

/// Gives the overview and the newest operation as text. Rates of requests need two reports of each node, so a single
/// look shows them as unknown.
///
/// # Errors
/// If no node is in reach, or it cannot be printed.
pub async fn plain(target: String, ascii: bool, client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    let description = client.refresh().await?;
    let request = v1::WatchRequest {
        partitions: true,
        events_after: Some(0),
        audit_after: Some(0),
        ..v1::WatchRequest::default()
    };
    let reports = client.reports(request, REPORT_TIMEOUT).await;
    let theme = Theme { palette: Palette::Mono, ascii, ..Theme::default() };
    let mut model = Model::new(target, theme, true, SIZE, now_us());
    let mut feeds = vec![Feed::Description(Arc::clone(&description))];
    for report in reports {
        feeds.push(match report.snapshot {
            Ok(snapshot) => Feed::Snapshot(NodeId(snapshot.node), snapshot),
            Err(error) => Feed::Lost(report.node, error.message),
        });
        feeds.extend(report.events.into_iter().map(Feed::Event));
    }
    for feed in feeds {
        update(&mut model, Msg::Feed(feed));
    }
    let text = text_of(&draw(&model).buffer);
    // The last line holds hints for keys, which cannot be pressed here.
    let shown: Vec<&str> = text.lines().take(usize::from(SIZE.1) - 1).collect();
    let mut lines: Vec<String> = shown.into_iter().map(str::to_owned).collect();
    if let Some(report) = operation(client).await? {
        // Of what has ended the facts are enough; op show lists its moves.
        let printed = if report.progress.is_active() { report.lines() } else { report.facts() };
        lines.push(String::new());
        lines.extend(printed.iter().map(|line| printable(line.as_bytes())));
    }
    let text = lines.join("\n");
    sink.item(Item {
        json: Value::from(text.clone()),
        raw: format!("{text}\n").into_bytes(),
        human: Human::Text(text),
    })?;
    sink.flush()
}

/// The operation under way, else the newest; `None` if there never was one.
async fn operation(client: &Client) -> Result<Option<Report>, CommandError> {
    match Report::with_rates(None, client).await {
        Ok(report) => Ok(Some(report)),
        Err(error) if error.class == Class::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Gives the operation under way, else the newest, as `op show` does; nothing if there never was one.
///
/// # Errors
/// If no node is in reach, or it cannot be printed.
pub async fn newest_operation(client: &Client, sink: &mut dyn Sink) -> Result<(), CommandError> {
    match document(None, client).await {
        Ok(item) => sink.item(item).and_then(|()| sink.flush()),
        Err(error) if error.class == Class::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// The characters of a screen, without spaces at the ends of lines.
#[must_use]
pub fn text_of(screen: &Buffer) -> String {
    let mut text = String::new();
    for y in 0..screen.area.height {
        let mut line = String::new();
        let mut skip = 0;
        for x in 0..screen.area.width {
            let Some(cell) = screen.cell((x, y)) else { continue };
            if skip > 0 {
                // The second column of a wide character holds nothing of its own.
                skip -= 1;
                continue;
            }
            line.push_str(cell.symbol());
            skip = unicode_width::UnicodeWidthStr::width(cell.symbol()).saturating_sub(1);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
