//! A change of the topology on its way from a wish to an operation: what is asked for, the plan that answers, and what
//! lets exactly that plan start.

use kv_proto::v1;

use super::bar::Bar;
use super::confirm::Confirm;
use super::keymap::Key;
use crate::command::{Command, NodeCommand, Topology, for_shell, quoted};

/// What is to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named as the commands")]
pub enum Kind {
    Add,
    Remove,
    Replace,
    Weight,
    Zone,
    Copies,
    Rebalance,
}

impl Kind {
    /// What it is called on the screen.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Add => "Add node",
            Self::Remove => "Remove node",
            Self::Replace => "Replace node",
            Self::Weight => "Weight of a node",
            Self::Zone => "Zone of a node",
            Self::Copies => "Number of copies",
            Self::Rebalance => "Rebalance",
        }
    }

    /// The fields: name, hint, and the words among which one is chosen, if it is not free text.
    fn fields(self) -> &'static [(&'static str, &'static str, &'static [&'static str])] {
        const NODE: (&str, &str, &[&str]) = ("node", "its name, number or address", &[]);
        const RATE: (&str, &str, &[&str]) =
            ("limit", "what each receiving node copies, also later; empty: as it is", &[]);
        match self {
            Self::Add => &[
                ("node", "a spare's name, number or address; empty: a new local node", &[]),
                ("zone", "its failure domain; empty: as it is", &[]),
                ("weight", "its capacity beside the others; empty: as it is", &[]),
                RATE,
            ],
            Self::Remove => {
                &[NODE, ("dead", "yes: it never comes back; its copies are restored from others", &["no", "yes"]), RATE]
            }
            Self::Replace => {
                &[("node", "who gives its places away", &[]), ("by", "the spare that takes them", &[]), RATE]
            }
            Self::Weight => &[NODE, ("weight", "its capacity beside the others", &[]), RATE],
            Self::Zone => &[NODE, ("zone", "its failure domain", &[]), RATE],
            Self::Copies => &[("copies", "of each key, 1 to 255", &[]), RATE],
            Self::Rebalance => &[RATE],
        }
    }
}

/// Something to fill in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What belongs there.
    pub hint: &'static str,
    /// The words among which one is chosen; empty: any text.
    pub choices: &'static [&'static str],
    /// Its text.
    pub value: Bar,
}

impl Field {
    fn next_choice(&mut self) {
        let at = self.choices.iter().position(|choice| *choice == self.value.text).map_or(0, |at| at + 1);
        if let Some(choice) = self.choices.get(at % self.choices.len().max(1)) {
            self.value = Bar::with(choice);
        }
    }
}

/// A change on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Planning {
    /// What is to be changed.
    pub kind: Kind,
    /// What is known of it.
    pub fields: Vec<Field>,
    /// The field in which the keys type.
    pub focus: usize,
    /// The operation is followed to its end.
    pub waits: bool,
    /// Names the newest question; answers to older ones are dropped.
    pub generation: u64,
    /// How far it is.
    pub stage: Stage,
    /// Why there is no plan; empty: none was asked for, or there is one.
    pub error: String,
}

/// How far a change is.
#[derive(Clone, Debug, PartialEq)]
pub enum Stage {
    /// The fields are filled in.
    Form,
    /// A process is being started for the new node.
    Starting,
    /// The new node of this name runs; the members have to learn of it.
    Joining(String),
    /// The plan has been asked for.
    Asked,
    /// The plan is looked at.
    Review(Box<Review>),
}

/// What of a plan is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Page {
    /// What it moves and means.
    #[default]
    Plan,
    /// From whom copies are read.
    Sources,
    /// Why it moves what it moves.
    Why,
}

/// The most lines of a plan that can be scrolled by.
const LINES_MAX: usize = 10_000;

/// A plan that is looked at.
#[derive(Clone, Debug, PartialEq)]
pub struct Review {
    /// The plan.
    pub plan: v1::PlanResponse,
    /// What of it is looked at.
    pub page: Page,
    /// The rate of which its estimate of the time speaks, in bytes a second; 0: none.
    pub bytes_per_second: u64,
    /// The command that starts exactly this plan, and the word that lets it.
    pub confirm: Confirm,
    /// The operation is followed to its end.
    pub waits: bool,
    /// The keys type the word; otherwise they move in the plan.
    pub typing: bool,
    /// The first line shown.
    pub top: usize,
}

impl Review {
    /// Whether the plan was made for another epoch than this one, and applies to nothing any more.
    #[must_use]
    pub fn is_void(&self, epoch: Option<u64>) -> bool {
        epoch.is_some_and(|epoch| epoch != self.plan.parent_epoch)
    }

    /// Whether keys type the word: the field is there, and has the focus.
    #[must_use]
    pub fn types(&self, epoch: Option<u64>) -> bool {
        self.typing && !self.is_void(epoch) && self.plan.refusals.is_empty()
    }

    /// Moves by rows in the plan.
    pub fn scroll(&mut self, rows: isize) {
        self.top = self.top.saturating_add_signed(rows).min(LINES_MAX);
    }

    /// The command that does the same, for a shell.
    #[must_use]
    pub fn command(&self) -> String {
        let wait = if self.waits { " --wait" } else { "" };
        format!("kv-tui exec {}{wait} --yes", for_shell(&self.confirm.line))
    }
}

impl Planning {
    /// A change of which some fields are known, in their order.
    #[must_use]
    pub fn new(kind: Kind, known: &[&str]) -> Self {
        let mut known = known.iter();
        let fields = kind.fields().iter().map(|(name, hint, choices)| {
            let usual = choices.first().copied().unwrap_or_default();
            let text = known.next().copied().filter(|text| !text.is_empty()).unwrap_or(usual);
            Field { name, hint, choices, value: Bar::with(text) }
        });
        let fields = fields.collect();
        Self { kind, fields, focus: 0, waits: false, generation: 0, stage: Stage::Form, error: String::new() }
    }

    /// The change that a command asks for; `None` if it asks for something else, or names its plan already.
    #[must_use]
    pub fn of(command: &Command) -> Option<Self> {
        let settings = command.topology().filter(|settings| !settings.dry_run && settings.plan.is_none())?;
        let rate = rate_of(&settings);
        let text = |value: Option<f64>| value.map(|value| value.to_string()).unwrap_or_default();
        let planning = match command {
            Command::Node(NodeCommand::Add(args)) => {
                let zone = args.zone.clone().unwrap_or_default();
                let node = args.node.as_deref().unwrap_or_default();
                Self::new(Kind::Add, &[node, &zone, &text(args.weight), &rate])
            }
            Command::Node(NodeCommand::Remove(args)) => {
                Self::new(Kind::Remove, &[&args.node, if args.dead { "yes" } else { "no" }, &rate])
            }
            Command::Node(NodeCommand::Replace(args)) => Self::new(Kind::Replace, &[&args.old, &args.new, &rate]),
            Command::Node(NodeCommand::Weight(args)) => {
                Self::new(Kind::Weight, &[&args.node, &args.weight.to_string(), &rate])
            }
            Command::Node(NodeCommand::Zone(args)) => Self::new(Kind::Zone, &[&args.node, &args.zone, &rate]),
            Command::Copies(args) => Self::new(Kind::Copies, &[&args.copies.to_string(), &rate]),
            Command::Rebalance(_) => Self::new(Kind::Rebalance, &[&rate]),
            _ => return None,
        };
        Some(Self { waits: settings.wait, ..planning })
    }

    /// The text of a field.
    #[must_use]
    pub fn value(&self, name: &str) -> &str {
        self.fields.iter().find(|field| field.name == name).map_or("", |field| field.value.text.trim())
    }

    /// Whether the node is to be a new process of the local cluster.
    #[must_use]
    pub fn is_new_node(&self) -> bool {
        self.kind == Kind::Add && self.value("node").is_empty()
    }

    /// The command that asks for the change.
    #[must_use]
    pub fn line(&self) -> String {
        let word = |name: &str| match self.value(name) {
            "" => String::new(),
            text => format!(" {}", quoted(text.as_bytes())),
        };
        let option = |name: &str| match word(name) {
            empty if empty.is_empty() => empty,
            text => format!(" --{name}{text}"),
        };
        let mut line = match self.kind {
            Kind::Add => format!("node add{}{}{}", word("node"), option("zone"), option("weight")),
            Kind::Remove => {
                format!("node remove{}{}", word("node"), if self.value("dead") == "yes" { " --dead" } else { "" })
            }
            Kind::Replace => format!("node replace{}{}", word("node"), word("by")),
            Kind::Weight => format!("node weight{}{}", word("node"), word("weight")),
            Kind::Zone => format!("node zone{}{}", word("node"), word("zone")),
            Kind::Copies => format!("copies{}", word("copies")),
            Kind::Rebalance => "rebalance".to_owned(),
        };
        line.push_str(&option("limit"));
        line
    }

    /// Types in the field that has the focus.
    pub fn edit(&mut self, key: Key) {
        let last = self.fields.len().saturating_sub(1);
        match key {
            Key::Tab | Key::Down => self.focus = if self.focus >= last { 0 } else { self.focus + 1 },
            Key::BackTab | Key::Up => self.focus = self.focus.checked_sub(1).unwrap_or(last),
            key => {
                let Some(field) = self.fields.get_mut(self.focus) else { return };
                if field.choices.is_empty() {
                    field.value.edit(key);
                } else if matches!(key, Key::Char(' ') | Key::Left | Key::Right) {
                    field.next_choice();
                }
            }
        }
    }

    /// Puts text into the field that has the focus, or into the confirmation.
    pub fn paste(&mut self, text: &str) {
        match &mut self.stage {
            Stage::Form => {
                if let Some(field) = self.fields.get_mut(self.focus).filter(|field| field.choices.is_empty()) {
                    field.value.insert(text);
                }
            }
            Stage::Review(review) => {
                review.typing = true;
                review.confirm.typed.insert(text);
            }
            Stage::Starting | Stage::Joining(_) | Stage::Asked => {}
        }
    }
}

fn rate_of(settings: &Topology) -> String {
    settings.limit.map(rate_text).unwrap_or_default()
}

/// A rate as it is typed; 0: off.
#[must_use]
pub fn rate_text(bytes_per_second: u64) -> String {
    match bytes_per_second {
        0 => "off".to_owned(),
        rate if rate.is_multiple_of(1 << 20) => format!("{}MiB/s", rate >> 20),
        rate if rate.is_multiple_of(1 << 10) => format!("{}KiB/s", rate >> 10),
        rate => format!("{rate}/s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Line;

    fn check(line: &str, expected: &str) {
        let parsed = Line::parse_line(line.as_bytes()).expect("parses").expect("a command");
        assert_eq!(Planning::of(&parsed.command).map_or_else(String::new, |planning| planning.line()), expected);
    }

    #[test]
    fn a_command_becomes_fields_and_the_fields_that_command() {
        check("node add n4", "node add n4");
        check("node add n4 --wait", "node add n4");
        check("node add n4 --limit 16MiB/s", "node add n4 --limit 16MiB/s");
        check("node add n4 --weight 2 --zone b --limit 1MiB/s # why", "node add n4 --zone b --weight 2 --limit 1MiB/s");
        check("node add 'a b' --limit off", "node add 'a b' --limit off");
        check("node remove --dead n1 --limit 1000/s", "node remove n1 --dead --limit 1000/s");
        check("node remove n1", "node remove n1");
        check("node replace n1 n4", "node replace n1 n4");
        check("node weight n1 0.5", "node weight n1 0.5");
        check("node zone n1 b --limit 3KiB/s", "node zone n1 b --limit 3KiB/s");
        check("copies 2", "copies 2");
        check("copies 2 --dry-run", "");
        check("rebalance --wait", "rebalance");
        check("rebalance --limit 1MiB/s", "rebalance --limit 1MiB/s");
        check("node remove n1 --plan 0123456789abcdef", "");
        check("node ls", "");
    }

    #[test]
    fn the_fields_are_reached_in_turn() {
        let mut planning = Planning::new(Kind::Remove, &["n1"]);
        for key in [Key::Char('2'), Key::Tab, Key::Char('x'), Key::Char(' '), Key::Tab, Key::Tab] {
            planning.edit(key);
        }
        assert_eq!((planning.line().as_str(), planning.focus), ("node remove n12 --dead", 0));
        planning.edit(Key::BackTab);
        assert_eq!(planning.focus, 2);
        planning.focus = 1;
        planning.paste("zzz");
        planning.edit(Key::Left);
        assert_eq!(planning.line(), "node remove n12");
    }
}
