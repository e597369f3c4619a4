//! What a name that is unknown was probably meant to be.

/// How alike two names must be, from 0 to 1: a letter too many, one too few or two in the wrong order are.
const ALIKE: f64 = 0.8;

/// The end of a message about an unknown name: what was probably meant, or nothing.
#[must_use]
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let typed = name.to_lowercase();
    let alike = known.into_iter().map(|known| (strsim::jaro_winkler(&typed, &known.to_lowercase()), known));
    let best = alike.filter(|(alike, _)| *alike >= ALIKE).max_by(|a, b| a.0.total_cmp(&b.0));
    best.map_or_else(String::new, |(_, known)| format!(" (did you mean {known:?}?)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_alike_is_offered() {
        let known = ["default", "users", "sessions"];
        for (typed, expected) in [
            ("defualt", " (did you mean \"default\"?)"),
            ("user", " (did you mean \"users\"?)"),
            ("Users", " (did you mean \"users\"?)"),
            ("sesions", " (did you mean \"sessions\"?)"),
            ("orders", ""),
            ("", ""),
        ] {
            assert_eq!(did_you_mean(typed, known), expected, "{typed}");
        }
        assert_eq!(did_you_mean("n9", ["n1", "n2", "n3"]), "", "numbers are not misspelt");
        assert_eq!(did_you_mean("nod1", ["node1", "node2"]), " (did you mean \"node1\"?)");
    }
}
