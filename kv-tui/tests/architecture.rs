//! The modules of each crate import each other in the order that ARCHITECTURE.md states, and in no other.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

/// The order of one folder of modules: `kv-node`, or `kv-node/control`.
#[derive(Debug, Default)]
struct Order {
    /// The crate, then the folders within `src`.
    name: String,
    /// A module imports only modules that stand behind it.
    modules: Vec<String>,
    /// Imports against the order, with the reason for each.
    exceptions: BTreeMap<(String, String), String>,
}

impl Order {
    /// The folders within `src`.
    fn folders(&self) -> Vec<String> {
        self.name.split('/').skip(1).map(str::to_owned).collect()
    }

    fn dir(&self, root: &Path) -> PathBuf {
        let package = self.name.split('/').next().unwrap();
        // The folder of kv-proto has a name of its own.
        let folder = if package == "kv-proto" { "proto" } else { package };
        self.folders().iter().fold(root.join(folder).join("src"), |dir, name| dir.join(name))
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Reads the block `imports` of ARCHITECTURE.md.
fn orders(text: &str) -> Vec<Order> {
    let block = text.split_once("```imports\n").unwrap().1.split_once("```").unwrap().0;
    let mut orders: Vec<Order> = Vec::new();
    for line in block.lines().filter(|line| !line.trim().is_empty()) {
        if let Some(exception) = line.trim().strip_prefix("except ") {
            let (edge, reason) = exception.split_once(": ").expect("except FROM -> TO: REASON");
            let (from, to) = edge.split_once(" -> ").expect("except FROM -> TO: REASON");
            let order = orders.last_mut().expect("an exception stands below the order of its crate");
            order.exceptions.insert((from.to_owned(), to.to_owned()), reason.to_owned());
        } else {
            let (name, modules) = line.split_once(": ").expect("CRATE: MODULE MODULE");
            let modules = modules.split_whitespace().map(str::to_owned).collect();
            orders.push(Order { name: name.to_owned(), modules, exceptions: BTreeMap::new() });
        }
    }
    orders
}

/// All sources below a folder, as paths of modules, without tests.
fn sources(dir: &Path, module: &[String], found: &mut Vec<(Vec<String>, String)>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "tests" {
            continue;
        }
        let within = || module.iter().cloned().chain([name.clone()]).collect::<Vec<_>>();
        if path.is_dir() {
            sources(&path, &within(), found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let module = if ["mod", "lib", "main"].contains(&name.as_str()) { module.to_vec() } else { within() };
            found.push((module, code(&fs::read_to_string(&path).unwrap())));
        }
    }
}

/// The text without comments and without what is compiled for tests only.
fn code(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            code.push_str(line);
            code.push('\n');
            continue;
        }
        let indent = line.len() - line.trim_start().len();
        // rustfmt puts the end of an item where the item begins, or ends it on its first line.
        for line in lines.by_ref() {
            let closes = line.len() - line.trim_start().len() == indent && line.trim() == "}";
            if closes || line.trim_end().ends_with(';') && line.starts_with(|letter: char| !letter.is_whitespace()) {
                break;
            }
        }
    }
    code
}

/// The paths that a text names after `crate::` and `super::`, from the root of the crate on.
fn paths(module: &[String], code: &str) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    for (at, _) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        let before = &code[..at];
        if before.ends_with(|letter: char| letter.is_alphanumeric() || letter == '_') || before.ends_with("super::") {
            continue;
        }
        let mut rest = &code[at..];
        let mut base: Vec<String> = Vec::new();
        if let Some(behind) = rest.strip_prefix("crate::") {
            rest = behind;
        } else {
            base = module.to_vec();
            while let Some(behind) = rest.strip_prefix("super::") {
                base.pop();
                rest = behind;
            }
        }
        expand(&base, rest, &mut paths);
    }
    paths
}

/// Follows a path, and all paths of a group in braces, as deep as names go.
fn expand<'a>(base: &[String], mut text: &'a str, paths: &mut BTreeSet<Vec<String>>) -> &'a str {
    let mut path = base.to_vec();
    loop {
        text = text.trim_start();
        if let Some(group) = text.strip_prefix('{') {
            text = group;
            loop {
                text = expand(&path, text, paths).trim_start();
                match text.strip_prefix(',') {
                    Some(next) => text = next,
                    None => return text.strip_prefix('}').unwrap_or(text),
                }
            }
        }
        let end = text.find(|letter: char| !letter.is_alphanumeric() && letter != '_').unwrap_or(text.len());
        let (name, behind) = text.split_at(end);
        if !name.is_empty() {
            path.push(name.to_owned());
            paths.insert(path.clone());
        }
        match behind.strip_prefix("::") {
            Some(next) if !name.is_empty() => text = next,
            _ => {
                // `as another`: the name in the crate has been taken.
                let trimmed = behind.trim_start();
                return trimmed.strip_prefix("as ").map_or(behind, |alias| {
                    alias.trim_start_matches(|letter: char| letter.is_alphanumeric() || letter == '_')
                });
            }
        }
    }
}

/// The modules that stand directly in a folder.
fn modules<'a>(order: &Order, found: &'a [(Vec<String>, String)]) -> BTreeSet<&'a String> {
    let depth = order.folders().len();
    found.iter().filter_map(|(module, _)| module.get(depth)).collect()
}

/// The imports between the modules of a folder, with the module that has each.
fn imports(order: &Order, found: &[(Vec<String>, String)]) -> BTreeMap<(String, String), String> {
    let folders = order.folders();
    let modules = modules(order, found);
    let mut imports = BTreeMap::new();
    for (module, code) in found {
        // What lies above its modules brings them together.
        let Some(from) = module.get(folders.len()) else { continue };
        for path in paths(module, code) {
            let to = path.strip_prefix(folders.as_slice()).and_then(<[String]>::first);
            if let Some(to) = to.filter(|to| *to != from && modules.contains(to)) {
                imports.entry((from.clone(), to.clone())).or_insert_with(|| module.join("::"));
            }
        }
    }
    imports
}

/// What is wrong with the imports of one folder.
fn problems(order: &Order, root: &Path) -> String {
    let name = &order.name;
    let mut problems = String::new();
    let mut found = Vec::new();
    sources(&order.dir(root), &order.folders(), &mut found);
    let present = modules(order, &found);
    let listed: BTreeSet<&String> = order.modules.iter().collect();
    for module in present.difference(&listed) {
        writeln!(problems, "{name}: the module {module} has no place in the order; add it").unwrap();
    }
    for module in listed.difference(&present) {
        writeln!(problems, "{name}: the order names {module}, which does not exist; remove it").unwrap();
    }
    if !problems.is_empty() {
        return problems;
    }
    let place = |module: &String| order.modules.iter().position(|listed| listed == module);
    let imports = imports(order, &found);
    let upward = imports.iter().filter(|((from, to), _)| place(from) > place(to));
    let upward: BTreeMap<_, _> = upward.collect();
    for (edge, module) in &upward {
        if !order.exceptions.contains_key(*edge) {
            writeln!(problems, "{name}: {module} imports {}, which stands before {}", edge.1, edge.0).unwrap();
        }
    }
    for (edge, reason) in &order.exceptions {
        if !upward.contains_key(edge) {
            let (from, to) = edge;
            writeln!(problems, "{name}: the exception {from} -> {to} ({reason}) is not needed any more; remove it")
                .unwrap();
        }
    }
    problems
}

#[test]
fn imports_run_one_way() {
    let root = root();
    let text = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let problems: String = orders(&text).iter().map(|order| problems(order, &root)).collect();
    assert!(problems.is_empty(), "imports against the order in ARCHITECTURE.md (\"Imports run one way\"):\n{problems}");
}

/// What is inside a cell of an available keyspace concerns the component that answers clients, and the codec of the store.
#[test]
fn only_few_open_cells() {
    let mut found = Vec::new();
    sources(&root().join("kv-core/src"), &[], &mut found);
    let opened = ["Cell::Available", "Cell::record", "cell.record()"];
    let opens = |(_, code): &&(Vec<String>, String)| opened.iter().any(|by| code.contains(by));
    let openers: BTreeSet<String> = found.iter().filter(opens).map(|(module, _)| module.join("::")).collect();
    let may = |module: &String| module.starts_with("requests::") || module == "storage::codec";
    let others: Vec<&String> = openers.iter().filter(|module| !may(module)).collect();
    assert!(others.is_empty(), "these modules open cells; let `cell` answer for them what they ask: {others:?}");
    assert!(openers.contains("requests::write") && openers.contains("storage::codec"), "{openers:?}");
}

#[test]
fn every_crate_has_an_order() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let names: Vec<String> = orders(&text).into_iter().map(|order| order.name).collect();
    for package in ["kv-core", "kv-proto", "kv-node", "kv-tui"] {
        assert!(names.iter().any(|name| name == package), "{package} has no order of imports");
    }
}

#[test]
fn paths_are_found_in_groups_and_from_parents() {
    let text = "use crate::{a::{b, c as d}, e};\nuse super::f::G;\nfn h() { crate::i::j(); super::super::k(); }\n\
                #[cfg(test)]\nmod tests {\n    use crate::hidden;\n}\nuse crate::l; // crate::comment\n";
    let module = ["x".to_owned(), "y".to_owned()];
    let found: Vec<String> = paths(&module, &code(text)).iter().map(|path| path.join("::")).collect();
    assert_eq!(found, ["a", "a::b", "a::c", "e", "i", "i::j", "k", "l", "x::f", "x::f::G"]);
}

#[test]
fn an_import_against_the_order_and_an_exception_without_one_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let src = dir.path().join("demo/src");
    fs::create_dir_all(src.join("low")).unwrap();
    fs::write(src.join("lib.rs"), "mod high;\nmod low;\n").unwrap();
    fs::write(src.join("high.rs"), "use crate::low::Thing;\n").unwrap();
    fs::write(src.join("low/mod.rs"), "mod part;\n").unwrap();
    fs::write(src.join("low/part.rs"), "use super::super::high::Other;\n").unwrap();
    let check = |block: &str| {
        let orders = orders(&format!("```imports\n{block}\n```"));
        orders.iter().map(|order| problems(order, dir.path())).collect::<String>()
    };
    assert_eq!(check("demo: high low"), "demo: low::part imports high, which stands before low\n");
    assert_eq!(check("demo: high low\n    except low -> high: a test"), "");
    assert_eq!(
        check("demo: low high\n    except low -> high: a test"),
        "demo: high imports low, which stands before high\n\
         demo: the exception low -> high (a test) is not needed any more; remove it\n"
    );
    assert_eq!(
        check("demo: high gone\n    except low -> high: a test"),
        "demo: the module low has no place in the order; add it\n\
         demo: the order names gone, which does not exist; remove it\n"
    );
}
