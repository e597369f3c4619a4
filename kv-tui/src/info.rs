//! info: every path and setting that is used.

use std::env;
use std::io;
use std::path::PathBuf;

use serde_json::json;

use crate::error::CommandError;
use crate::output::{Format, Human, Item, Printer, Sink};
use crate::paths::Paths;

pub(crate) fn info(format: Format) -> Result<(), CommandError> {
    let paths = Paths::new()?;
    let variable = |name: &str| env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let local = variable("KV_LOCAL_DIR").map_or_else(|| paths.local(), PathBuf::from);
    let text = |path: PathBuf| Some(path.display().to_string());
    let executable = env::current_exe().map(|path| path.display().to_string()).unwrap_or_default();
    let entries = [
        ("version", Some(env!("CARGO_PKG_VERSION").to_owned())),
        ("executable", Some(executable)),
        ("config", text(paths.config_file())),
        ("data", text(paths.data.clone())),
        ("history", text(paths.history())),
        ("dashboard", text(paths.saved_view())),
        ("local_cluster", text(local.clone())),
        ("local_nodes", text(local.join("local.json"))),
        ("local_logs", text(local.join("n*").join("node.log"))),
        ("single_node", text(paths.data.join("node"))),
        ("KV_CONNECT", variable("KV_CONNECT")),
        ("KV_LOCAL_DIR", variable("KV_LOCAL_DIR")),
    ];
    let mut json = json!({"schema": 1});
    let mut lines = Vec::new();
    for (name, value) in entries {
        json[name] = json!(value);
        lines.push(format!("{name:<14} {}", value.as_deref().unwrap_or("(not set)")));
    }
    let text = lines.join("\n");
    let mut printer = Printer::new(format, io::stdout(), io::stderr());
    printer.item(Item { json, raw: format!("{text}\n").into_bytes(), human: Human::Text(text) })?;
    printer.flush()
}
