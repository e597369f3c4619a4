//! The configuration file: `config.toml` in the user's configuration folder. A mistake in it is named with its line, and
//! nothing of the file is used then, so that the dashboard starts in any case.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;

use kv_proto::address::check_address;
use serde::Deserialize;
use toml::Spanned;

use super::columns::Column;
use super::keymap::KeyMap;
use super::theme::{Marks, Palette};

/// Settings of the dashboard, and the clusters that this user works with.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The colours.
    pub theme: Option<Palette>,
    /// What charts are drawn with.
    pub marks: Marks,
    /// Draw with ASCII only.
    pub ascii: bool,
    /// The cluster that is meant where none is named.
    pub context: Option<Context>,
    /// The columns of the tables of nodes; `None`: as built in.
    pub columns: [Option<Arc<[Column]>>; 2],
    /// What the keys mean.
    pub keymap: Arc<KeyMap>,
}

/// A cluster with a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// Its name.
    pub name: String,
    /// Some of its nodes, as host:port.
    pub connect: Vec<String>,
    /// Refuse what changes it.
    pub read_only: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    theme: Option<Palette>,
    #[serde(default)]
    markers: Marks,
    #[serde(default)]
    ascii: bool,
    context: Option<Spanned<String>>,
    #[serde(default)]
    contexts: BTreeMap<String, FileContext>,
    #[serde(default)]
    columns: FileColumns,
    #[serde(default)]
    keys: BTreeMap<String, Spanned<Vec<String>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileContext {
    connect: Spanned<Vec<String>>,
    #[serde(default)]
    read_only: bool,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileColumns {
    overview: Option<Vec<Column>>,
    nodes: Option<Vec<Column>>,
}

impl Config {
    /// Reads the file; one that is absent says nothing. Beside it what is wrong with it, as a sentence.
    #[must_use]
    pub fn read(path: &Path) -> (Self, Option<String>) {
        let shown = path.display();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (Self::default(), None),
            Err(error) => return (Self::default(), Some(format!("cannot read {shown}: {error}"))),
        };
        match Self::parse(&text) {
            Ok(config) => (config, None),
            Err((line, why)) => (Self::default(), Some(format!("{shown}, line {line}: {why}; the file is not used"))),
        }
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// The line, from 1, and what is wrong there.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let line_of = |at: usize| text.get(..at).unwrap_or(text).matches('\n').count() + 1;
        let file: File = toml::from_str(text).map_err(|error| {
            let why = error.message().lines().next().unwrap_or_default().to_owned();
            (error.span().map_or(1, |span| line_of(span.start)), why)
        })?;
        let context = match &file.context {
            None => None,
            Some(name) => {
                let found = file.contexts.get(name.get_ref()).ok_or_else(|| {
                    let known: Vec<&str> = file.contexts.keys().map(String::as_str).collect();
                    let name = name.get_ref();
                    let why = format!("there is no [contexts.{name}]; there are: {}", known.join(", "));
                    (line_of(file.context.as_ref().map_or(0, |name| name.span().start)), why)
                })?;
                Some(Context {
                    name: name.get_ref().clone(),
                    connect: found.connect.get_ref().clone(),
                    read_only: found.read_only,
                })
            }
        };
        if let Some((name, empty)) = file.contexts.iter().find(|(_, context)| context.connect.get_ref().is_empty()) {
            return Err((line_of(empty.connect.span().start), format!("the context {name} names no node")));
        }
        for context in file.contexts.values() {
            for address in context.connect.get_ref() {
                check_address(address).map_err(|error| (line_of(context.connect.span().start), error.message))?;
            }
        }
        let changes = file.keys.iter().map(|(name, keys)| (name.clone(), keys.get_ref().clone())).collect();
        let keymap = KeyMap::with(&changes)
            .map_err(|(name, why)| (file.keys.get(&name).map_or(1, |keys| line_of(keys.span().start)), why))?;
        Ok(Self {
            theme: file.theme,
            marks: file.markers,
            ascii: file.ascii,
            context,
            columns: [file.columns.overview.map(Into::into), file.columns.nodes.map(Into::into)],
            keymap: Arc::new(keymap),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dashboard::keymap::{Action, Key, Screen};

    #[test]
    fn a_file_changes_what_it_names() {
        let text = r#"
theme = "light"
markers = "block"
context = "prod"

[contexts.prod]
connect = ["10.0.0.1:7400", "10.0.0.2:7400"]
read_only = true

[columns]
overview = ["keys", "p99"]

[keys]
quit = ["Q", "Ctrl-C"]
"#;
        let config = Config::parse(text).expect("a good file");
        assert_eq!((config.theme, config.marks), (Some(Palette::Light), Marks::Block));
        let context = config.context.expect("a context");
        assert!(context.read_only && context.connect.len() == 2 && context.name == "prod");
        assert_eq!(config.columns[0].as_deref(), Some(&[Column::Keys, Column::P99][..]));
        assert_eq!(config.columns[1], None);
        assert_eq!(config.keymap.action(Screen::Keys, Key::Char('Q')), Some(Action::Quit));
        assert_eq!(config.keymap.action(Screen::Keys, Key::Char('q')), None);
    }

    fn check_wrong(text: &str, line: usize, expected: &str) {
        let (found, why) = Config::parse(text).expect_err("a bad file");
        assert!(found == line && why.contains(expected), "{text:?}: line {found}: {why}");
    }

    #[test]
    fn mistakes_are_named_with_their_lines() {
        check_wrong("theme = \"dark\"\nthme = 1\n", 2, "thme");
        check_wrong("\n\ntheme = \"pink\"\n", 3, "pink");
        check_wrong("ascii = true\n[keys]\nquti = [\"q\"]\n", 3, "no action is named quti");
        check_wrong("[keys]\nquit = [\"j\"]\n", 2, "j already means down");
        check_wrong("context = \"prod\"\n", 1, "no [contexts.prod]");
        check_wrong("[contexts.a]\nconnect = []\n", 2, "names no node");
        check_wrong("[contexts.a]\nread_only = true\nconnect = [\"a:1\", \"::1:7400\"]\n", 3, "[::1]:7400");
        check_wrong("[columns]\nnodes = [\"kyes\"]\n", 2, "kyes");
        check_wrong("ascii = tru", 1, "");
    }

    #[test]
    fn a_bad_file_does_not_keep_the_dashboard_from_starting() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("config.toml");
        assert!(Config::read(&path).1.is_none());
        std::fs::write(&path, "ascii = true\nx").expect("written");
        let (config, problem) = Config::read(&path);
        assert!(!config.ascii && problem.is_some_and(|problem| problem.contains("line 2")));
    }
}
