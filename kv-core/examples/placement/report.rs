//! The comparison as text and as a plot.

use crate::{KEYS, Measured, NODES, SCENARIOS};

const INTRODUCTION: &str = "\
# Placement

How the planner compares with other ways of placing data: what a change moves, and how even the result is. This page and
its plot are written by

    cargo run --release -p kv-core --example placement -- docs

";

pub(crate) fn text(measured: &[Measured]) -> String {
    let mut out = INTRODUCTION.to_owned();
    let (least, most) = NODES;
    out.push_str(&format!(
        "{KEYS} keys with 3 copies each; the cluster grows from {least} to {most} nodes one by one, or shrinks from {most} to {least},\n\
         the oldest node first. *Moved* is the share of all copies that change their node in a step, on average. *Over the\n\
         minimum* is that, over all steps, divided by the fewest copies with which every node could get its fair share: by\n\
         weight, at most one copy of each key. *Fullest* and *emptiest* are a node's copies divided by its fair share, at their\n\
         worst after any step.\n\n\
         ![Copies moved over the minimum, and the fullest node](placement.svg)\n"
    ));
    for scenario in &SCENARIOS {
        out.push_str(&format!(
            "\n## {}\n\n| scheme | moved | over the minimum | fullest | emptiest |\n| --- | ---: | ---: | ---: | ---: |\n",
            capital(scenario.name)
        ));
        for row in measured.iter().filter(|row| row.scenario == scenario.name) {
            out.push_str(&format!(
                "| {} | {:.1} % | {:.2} | {:.2} | {:.2} |\n",
                row.scheme, row.moved, row.over_minimum, row.fullest, row.emptiest
            ));
        }
    }
    out.push_str(READING);
    out
}

const READING: &str = "
## Reading it

* A value below 1 over the minimum is bought with imbalance: a scheme that leaves nodes too full or too empty moves less.
* The planner moves whole partitions, and every node holds its share of them rounded down or up. What is left of
  unevenness is that partitions do not hold exactly the same number of keys, and that a share is rounded.
* Rendezvous hashing is even and moves little with equal weights. With weights it is not even: copies of one key must lie on
  different nodes, so heavy nodes get less than their fair share and light ones more.
* Jump hashing is even with equal weights, and moves little when nodes are added. When any but the last node leaves, the
  last one takes its number, which moves that node's keys as well.
* Consistent hashing is uneven with few virtual nodes, and still uneven with 256.
* These schemes compute the owners from the list of nodes. The planner's layout is stored, so that a change can be seen before
  it happens and carried out partition by partition.
* The others, as compared here, know no zones; the planner keeps copies in distinct zones as well, with the fewest moves.
";

fn capital(name: &str) -> String {
    let mut letters = name.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

const COLOURS: [&str; 6] = ["#0072b2", "#999999", "#666666", "#333333", "#009e73", "#d55e00"];

/// Two bar charts side by side: copies moved over the minimum, and the fullest node over its fair share.
pub(crate) fn plot(measured: &[Measured]) -> String {
    let mut out = String::from(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"960\" height=\"420\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"960\" height=\"420\" fill=\"#ffffff\"/>\n",
    );
    chart(&mut out, 0.0, "copies moved over the minimum", measured, |row| row.over_minimum);
    chart(&mut out, 480.0, "fullest node over its fair share", measured, |row| row.fullest);
    let schemes = measured.iter().take(COLOURS.len());
    for (at, (row, colour)) in schemes.zip(COLOURS).enumerate() {
        let (x, y) = (40 + at % 3 * 310, 370 + at / 3 * 22);
        out.push_str(&format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"12\" height=\"12\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{}</text>\n",
            x + 18,
            y + 11,
            row.scheme
        ));
    }
    out.push_str("</svg>\n");
    out
}

/// The height of a chart in pixels, and the greatest value that fits.
const HEIGHT: f64 = 260.0;
const VALUE_MAX: f64 = 3.0;

fn chart(out: &mut String, left: f64, title: &str, measured: &[Measured], value: fn(&Measured) -> f64) {
    let bottom = 310.0;
    let y = |value: f64| bottom - HEIGHT * value.min(VALUE_MAX) / VALUE_MAX;
    out.push_str(&format!("<text x=\"{}\" y=\"28\" font-size=\"15\">{title}</text>\n", left + 40.0));
    for tick in 0..=6u8 {
        let at = f64::from(tick) / 2.0;
        // One is where everything should be.
        let (colour, width) = if tick == 2 { ("#000000", 1.5) } else { ("#dddddd", 1.0) };
        out.push_str(&format!(
            "<line x1=\"{}\" x2=\"{}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" stroke-width=\"{width}\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{at:.1}</text>\n",
            left + 40.0,
            left + 460.0,
            y(at),
            y(at),
            left + 34.0,
            y(at) + 4.0
        ));
    }
    for (group, scenario) in (0u8..).zip(&SCENARIOS) {
        let start = left + 50.0 + 104.0 * f64::from(group);
        let rows = measured.iter().filter(|row| row.scenario == scenario.name);
        for ((at, row), colour) in (0u8..).zip(rows).zip(COLOURS) {
            let (x, value) = (start + 15.0 * f64::from(at), value(row));
            let top = y(value);
            out.push_str(&format!(
                "<rect x=\"{x:.1}\" y=\"{top:.1}\" width=\"13\" height=\"{:.1}\" fill=\"{colour}\"><title>{}: {value:.2}</title></rect>\n",
                bottom - top,
                row.scheme
            ));
            if value > VALUE_MAX {
                out.push_str(&format!(
                    "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\" text-anchor=\"middle\">{value:.1}</text>\n",
                    x + 6.5,
                    top - 3.0
                ));
            }
        }
        for (line, part) in scenario.name.split(", ").take(2).enumerate() {
            let text = if line == 0 { part } else { scenario.name.split_once(", ").map_or(part, |parts| parts.1) };
            let height = if line == 0 { 326 } else { 341 };
            out.push_str(&format!(
                "<text x=\"{:.1}\" y=\"{height}\" text-anchor=\"middle\">{text}</text>\n",
                start + 45.0
            ));
        }
    }
}
