//! Medians over the rounds, as tables.

use std::time::Duration;

use super::gap::Gap;
use super::load::Figures;

/// What etcd is called, with which the others are compared.
const OTHER: &str = "etcd";

/// All measurements, in the order in which they came first.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    rows: Vec<Row>,
}

/// One measurement of one part, once for each round.
#[derive(Debug)]
struct Row {
    what: &'static str,
    in_flight: usize,
    who: &'static str,
    rounds: Vec<Figures>,
}

/// All kills.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    rows: Vec<(&'static str, Vec<Gap>)>,
}

impl Rows {
    /// Adds a measurement, and tells it.
    pub(crate) fn add(&mut self, what: &'static str, in_flight: usize, who: &'static str, figures: Figures) {
        println!(
            "  {what} {in_flight} {who}: {:.0}/s, p50 {:.2} ms, p99 {:.2} ms, {:.1} us, clients {:.1} us, {} retries, {} failures{}{}; \
             others took {:.0} % of a core",
            rate(&figures),
            figures.p50_ms,
            figures.p99_ms,
            each(&figures, figures.servers),
            each(&figures, figures.clients),
            figures.retries,
            figures.failures,
            if figures.failure.is_empty() { "" } else { ": " },
            figures.failure,
            figures.others * 100.0,
        );
        let known = self.rows.iter_mut().find(|row| (row.what, row.in_flight, row.who) == (what, in_flight, who));
        match known {
            Some(row) => row.rounds.push(figures),
            None => self.rows.push(Row { what, in_flight, who, rounds: vec![figures] }),
        }
    }

    /// The table. Of "beside" the rates and the processor times are divided, each so that more than 1 is better than etcd.
    pub(crate) fn tell(&self) {
        if self.rows.is_empty() {
            return;
        }
        println!(
            "| operation | in flight | store | operations/s (lowest, highest) | beside etcd | p50 ms | p99 ms | servers us/op | clients us/op | \
             failed comparisons for each success | failures | others, % of a core |"
        );
        println!("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| {
            (["put", "get", "cas"].iter().position(|what| *what == row.what), row.in_flight, row.who)
        });
        for row in rows {
            let of = |figure: fn(&Figures) -> f64| median(row.rounds.iter().map(figure));
            let other = self.rows.iter().find(|other| {
                (other.what, other.in_flight, other.who) == (row.what, row.in_flight, OTHER) && row.who != OTHER
            });
            let ratio = other
                .map_or(String::new(), |other| format!("{:.1} x", of(rate) / median(other.rounds.iter().map(rate))));
            let mut rates: Vec<f64> = row.rounds.iter().map(rate).collect();
            rates.sort_by(f64::total_cmp);
            let retries = if row.what == "cas" { format!("{:.1}", of(retries)) } else { String::new() };
            println!(
                "| {} | {} | {} | {:.0} ({:.0}, {:.0}) | {ratio} | {:.2} | {:.2} | {:.0} | {:.0} | {retries} | {} | {:.0} |",
                row.what,
                row.in_flight,
                row.who,
                of(rate),
                rates[0],
                rates[rates.len() - 1],
                of(|figures| figures.p50_ms),
                of(|figures| figures.p99_ms),
                of(|figures| each(figures, figures.servers)),
                of(|figures| each(figures, figures.clients)),
                row.rounds.iter().map(|figures| figures.failures).sum::<u64>(),
                of(|figures| figures.others * 100.0),
            );
        }
        println!();
    }
}

impl Gaps {
    /// Adds a kill, and tells it.
    pub(crate) fn add(&mut self, what: &'static str, gap: Gap) {
        let Gap { before, after, known, failures } = gap;
        println!(
            "  {what}: longest time without a success {} ms before, {} ms after, {} ms once it is known; {failures} failures",
            before.as_millis(),
            after.as_millis(),
            known.as_millis()
        );
        match self.rows.iter_mut().find(|row| row.0 == what) {
            Some(row) => row.1.push(gap),
            None => self.rows.push((what, vec![gap])),
        }
    }

    /// The table.
    pub(crate) fn tell(&self) {
        if self.rows.is_empty() {
            return;
        }
        println!(
            "| killed | kills | longest time without a success, ms: median (lowest, highest) | in the second before | from 6 s after the kill \
             on | failures |"
        );
        println!("| --- | ---: | ---: | ---: | ---: | ---: |");
        for (what, gaps) in &self.rows {
            println!(
                "| {what} | {} | {} | {} | {} | {} |",
                gaps.len(),
                spread(gaps.iter().map(|gap| gap.after)),
                spread(gaps.iter().map(|gap| gap.before)),
                spread(gaps.iter().map(|gap| gap.known)),
                gaps.iter().map(|gap| gap.failures).sum::<usize>(),
            );
        }
    }
}

fn rate(figures: &Figures) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a rate for people")]
    let operations = figures.operations as f64;
    operations / figures.seconds
}

fn retries(figures: &Figures) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a share for people")]
    let (retries, operations) = (figures.retries as f64, figures.operations.max(1) as f64);
    retries / operations
}

/// A time for each operation, in microseconds.
fn each(figures: &Figures, time: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a time for people")]
    let operations = figures.operations.max(1) as f64;
    time.as_secs_f64() * 1e6 / operations
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

fn spread(times: impl Iterator<Item = Duration>) -> String {
    let mut times: Vec<u128> = times.map(|time| time.as_millis()).collect();
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    format!("{} ({}, {})", at(times.len() / 2), at(0), at(times.len().saturating_sub(1)))
}
