//! The language against a table: value or error, and what was referred to.

use std::sync::Arc;

use super::*;
use crate::attributes::Value;

/// Attributes of the tests: `a*` are present, `m*` are declared and missing.
fn bag() -> Bag {
    let mut vocabulary = Vocabulary::empty();
    let declared = [
        ("as", ValueType::String, r#""x""#),
        ("empty", ValueType::String, r#""""#),
        ("key", ValueType::String, r#""k""#),
        ("ai", ValueType::Int64, "20"),
        ("ad", ValueType::Double, "1.5"),
        ("ab", ValueType::Bool, "true"),
        ("at", ValueType::Timestamp, r#""2026-01-02T03:04:05Z""#),
        ("adur", ValueType::Duration, r#""19ms""#),
        ("aip", ValueType::IpAddress, r#""10.0.0.1""#),
        ("adns", ValueType::DnsName, r#""A.b.""#),
        ("aemail", ValueType::EmailAddress, r#""Me@Example.com""#),
        ("auri", ValueType::Uri, r#""HTTP://Host.com/Path""#),
        ("ar", ValueType::StringMap, r#"{"k":"v","e":""}"#),
        ("a.b.c", ValueType::String, r#""deep""#),
        ("ms", ValueType::String, "null"),
        ("mi", ValueType::Int64, "null"),
        ("mb", ValueType::Bool, "null"),
        ("mr", ValueType::StringMap, "null"),
        ("mdur", ValueType::Duration, "null"),
        ("mkey", ValueType::String, "null"),
    ];
    for (name, kind, _) in declared {
        vocabulary.declare(name, kind).expect("distinct");
    }
    let vocabulary = Arc::new(vocabulary);
    let mut bag = Bag::new(&vocabulary);
    for (name, kind, json) in declared {
        let json = serde_json::from_str(json).expect("test data is JSON");
        if json != serde_json::Value::Null {
            let value = Value::from_json(kind, &json).expect("test data has its type");
            assert!(bag.set(vocabulary.id(name).expect("declared"), value));
        }
    }
    bag
}

fn run(source: &str) -> (String, String) {
    let bag = bag();
    let expression = match Expression::compile(source, bag.vocabulary()) {
        Ok(expression) => expression,
        Err(error) => return (format!("compile: {error}"), String::new()),
    };
    let mut refs = References::default();
    let value = match expression.eval_tracked(&bag, &mut refs) {
        Ok(value) => {
            assert_eq!(value.value_type(), expression.kind(), "{source}");
            format!("{} {}", expression.kind(), value.json())
        }
        Err(error) => format!("error: {error}"),
    };
    (value, refs.text(bag.vocabulary()).join(" "))
}

#[test]
fn values_and_references() {
    for (source, value, refs) in [
        // Literals.
        ("1", "INT64 1", ""),
        ("1.5", "DOUBLE 1.5", ""),
        (".5", "DOUBLE 0.5", ""),
        ("1e3", "DOUBLE 1000.0", ""),
        ("\"a\\tb\\x41\\u00e9\\101\"", "STRING \"a\\tbAéA\"", ""),
        ("`a\\b`", "STRING \"a\\\\b\"", ""),
        ("true", "BOOL true", ""),
        ("TRUE", "BOOL true", ""),
        ("False", "BOOL false", ""),
        ("\"19ms\"", "DURATION \"19ms\"", ""),
        ("\"0\"", "DURATION \"0s\"", ""),
        ("\"-1.5h\"", "DURATION \"-1h30m0s\"", ""),
        ("(((1)))", "INT64 1", ""),
        ("1 // words", "INT64 1", ""),
        ("/* words */ 1", "INT64 1", ""),
        // Variables.
        ("as", "STRING \"x\"", "as"),
        ("a.b.c", "STRING \"deep\"", "a.b.c"),
        ("adur", "DURATION \"19ms\"", "adur"),
        ("aip", "IP_ADDRESS \"10.0.0.1\"", "aip"),
        ("at", "TIMESTAMP \"2026-01-02T03:04:05Z\"", "at"),
        ("ms", "error: lookup failed: 'ms'", "-ms"),
        // Comparison.
        ("ai == 20", "BOOL true", "ai"),
        ("ai != 20", "BOOL false", "ai"),
        ("ai < 21 && ai <= 20 && ai > 19 && ai >= 20", "BOOL true", "ai"),
        ("as < \"y\"", "BOOL true", "as"),
        ("as >= \"y\"", "BOOL false", "as"),
        ("ad > 1.4", "BOOL true", "ad"),
        ("at > timestamp(\"2026-01-01T00:00:00Z\")", "BOOL true", "at"),
        ("at == timestamp(\"2026-01-02T04:04:05+01:00\")", "BOOL true", "at"),
        ("aip == ip(\"10.0.0.1\")", "BOOL true", "aip"),
        ("aip == ip(\"::ffff:10.0.0.1\")", "BOOL true", "aip"),
        ("aip != ip(\"10.0.0.2\")", "BOOL true", "aip"),
        ("adns == dnsName(\"a.B\")", "BOOL true", "adns"),
        ("adns == dnsName(\"a.c\")", "BOOL false", "adns"),
        ("dnsName(\"bücher.example\") == dnsName(\"XN--BCHER-KVA.example.\")", "BOOL true", ""),
        ("aemail == email(\"Me@EXAMPLE.com\")", "BOOL true", "aemail"),
        ("aemail == email(\"me@example.com\")", "BOOL false", "aemail"),
        ("auri == uri(\"http://hOST.com/Path\")", "BOOL true", "auri"),
        ("auri == uri(\"http://host.com/path\")", "BOOL false", "auri"),
        ("uri(\"ftp://Host/x\") == uri(\"FTP://Host/x\")", "BOOL true", ""),
        ("uri(\"ftp://Host/x\") == uri(\"ftp://host/x\")", "BOOL false", ""),
        ("ab == true", "BOOL true", "ab"),
        // Arithmetic that exists.
        ("ai + 1", "INT64 21", "ai"),
        ("ad + 1.5", "DOUBLE 3.0", "ad"),
        ("as + \"y\"", "STRING \"xy\"", "as"),
        // Precedence: `|` binds like `+`, above comparisons and `&&`.
        ("ms | as == \"x\"", "BOOL true", "-ms as"),
        ("as == ms | \"x\"", "BOOL true", "as -ms"),
        ("ab && mb | false", "BOOL false", "ab -mb"),
        ("true || false && false", "BOOL true", ""),
        ("1 + 2 == 3", "BOOL true", ""),
        // Maps.
        ("ar[\"k\"]", "STRING \"v\"", "ar[k]"),
        ("ar[key]", "STRING \"v\"", "key ar[k]"),
        ("ar[\"none\"]", "STRING \"\"", "-ar[none]"),
        ("ar[\"none\"] == \"\"", "BOOL true", "-ar[none]"),
        ("ar[\"none\"] | \"d\"", "STRING \"d\"", "-ar[none]"),
        ("ar[\"e\"] | \"d\"", "STRING \"\"", "ar[e]"),
        ("mr[\"k\"]", "error: lookup failed: 'mr'", "-mr"),
        ("mr[\"k\"] | \"d\"", "STRING \"d\"", "-mr"),
        ("ar[mkey] | \"d\"", "STRING \"d\"", "-mkey"),
        ("ar[mkey]", "error: lookup failed: 'mkey'", "-mkey"),
        ("mr[mkey] | ar[\"k\"] | \"d\"", "STRING \"v\"", "-mr ar[k]"),
        ("emptyStringMap()[\"x\"] | \"d\"", "STRING \"d\"", ""),
        ("(mr | ar)[\"k\"]", "STRING \"v\"", "-mr"),
        ("(mr | mr)[\"k\"] | \"d\"", "STRING \"d\"", "-mr"),
        ("ar", "STRING_MAP {\"e\":\"\",\"k\":\"v\"}", ""),
        // `|`.
        ("as | \"d\"", "STRING \"x\"", "as"),
        ("ms | \"d\"", "STRING \"d\"", "-ms"),
        ("ms | ms", "error: lookup failed: 'ms'", "-ms"),
        ("ms | as | \"d\"", "STRING \"x\"", "-ms as"),
        ("ms | (ms | \"d\")", "STRING \"d\"", "-ms"),
        ("mdur | \"0ms\"", "DURATION \"0s\"", "-mdur"),
        ("mi | 200", "INT64 200", "-mi"),
        // Functions count as present, and their own absences are errors.
        ("toLower(ms) | \"d\"", "error: lookup failed: 'ms'", "-ms"),
        ("conditional(mb, as, as) | \"d\"", "error: lookup failed: 'mb'", "-mb"),
        ("conditional(ab, ms, as) | \"d\"", "error: lookup failed: 'ms'", "ab -ms"),
        ("(ms == \"\") | ab", "error: lookup failed: 'ms'", "-ms"),
        // Short circuit.
        ("false && mb", "BOOL false", ""),
        ("true || mb", "BOOL true", ""),
        ("mb && false", "error: lookup failed: 'mb'", "-mb"),
        ("conditional(ai == 20, \"yes\", ms)", "STRING \"yes\"", "ai"),
        ("conditional(ai == 21, ms, \"no\")", "STRING \"no\"", "ai"),
        ("conditionalString(ai == 20, as, ms)", "error: lookup failed: 'ms'", "ai as -ms"),
        ("conditionalString(true, \"a\", \"b\")", "STRING \"a\"", ""),
        // Functions.
        ("size(as)", "INT64 1", "as"),
        ("size(\"é\")", "INT64 2", ""),
        ("toLower(\"ABC\")", "STRING \"abc\"", ""),
        ("match(\"abc\", \"ab*\")", "BOOL true", ""),
        ("match(\"abc\", \"*bc\")", "BOOL true", ""),
        ("match(\"abc\", \"abc\")", "BOOL true", ""),
        ("match(\"abc\", \"ab\")", "BOOL false", ""),
        ("match(\"*bc\", \"*b*\")", "BOOL true", ""),
        ("match(\"abc\", \"*b*\")", "BOOL false", ""),
        ("\"^a.c$\".matches(\"abc\")", "BOOL true", ""),
        ("\"b\".matches(\"abc\")", "BOOL true", ""),
        ("as.matches(\"x\")", "BOOL true", "as"),
        ("(\"a\" + \"b\").matches(\"ab\")", "BOOL true", ""),
        ("as.startsWith(\"x\")", "BOOL true", "as"),
        ("\"abc\".endsWith(\"bc\")", "BOOL true", ""),
        ("a.b.c.startsWith(\"de\")", "BOOL true", "a.b.c"),
        ("toLower(\"ABC\").startsWith(\"a\")", "BOOL true", ""),
        ("size(\"a\", \"b\")", "INT64 1", ""),
        ("ip(\"::1\")", "IP_ADDRESS \"::1\"", ""),
        ("ip(\"x\")", "error: could not convert x to IP_ADDRESS", ""),
        (
            "timestamp(\"x\")",
            "error: could not convert 'x' to TIMESTAMP. expected format: '2006-01-02T15:04:05Z07:00'",
            "",
        ),
        ("dnsName(\"-a-\")", "error: error converting '-a-' to dns name: not a domain name", ""),
        ("email(\"a\")", "error: error converting 'a' to e-mail: 'missing '@' or angle-addr'", ""),
        (
            "email(\"A <a@b>\")",
            "error: error converting 'A <a@b>' to e-mail: 'display names are not allowed'",
            "",
        ),
        ("uri(\"\")", "error: error converting string to uri: empty string", ""),
        ("uri(\":a\")", "error: error converting string to uri ':a': 'missing protocol scheme'", ""),
        ("uri(\"a b\")", "URI \"a b\"", ""),
    ] {
        assert_eq!(run(source), (value.to_owned(), refs.to_owned()), "{source}");
    }
}

#[test]
fn what_does_not_compile_says_why() {
    for (source, error) in [
        // Types.
        ("nope", "unknown attribute nope"),
        ("as.nope", "unknown attribute as.nope"),
        ("as == 2", "EQ($as, 2) arg 2 (2) typeError got INT64, expected STRING"),
        ("as == \"0\"", "EQ($as, \"0\") arg 2 (\"0\") typeError got DURATION, expected STRING"),
        ("ai | \"a\"", "OR($ai, \"a\") arg 2 (\"a\") typeError got STRING, expected INT64"),
        ("as && ab", "LAND($as, $ab) arg 1 ($as) typeError got STRING, expected BOOL"),
        ("as[\"a\"]", "INDEX($as, \"a\") arg 1 ($as) typeError got STRING, expected STRING_MAP"),
        ("ar[2]", "INDEX($ar, 2) arg 2 (2) typeError got INT64, expected STRING"),
        (
            "conditional(ab, 1, \"a\")",
            "conditional($ab, 1, \"a\") arg 3 (\"a\") typeError got STRING, expected INT64",
        ),
        ("conditional(as, 1, 1)", "conditional($as, 1, 1) arg 1 ($as) typeError got STRING, expected BOOL"),
        ("size(1)", "size(1) arg 1 (1) typeError got INT64, expected STRING"),
        ("1.matches(as)", "unable to parse expression '1.matches(as)': 1:1: 1.matches is not a number"),
        ("ai.matches(as)", "$ai:matches($as) target ($ai) typeError got INT64, expected STRING"),
        // Functions.
        ("foo(1)", "unknown function: foo"),
        ("!ab", "unknown function: NOT"),
        ("-1", "unknown function: SUB"),
        ("ai - 1", "unknown function: SUB"),
        ("ai * 1", "unknown function: MUL"),
        ("ai / 1", "unknown function: QUO"),
        ("ai % 1", "unknown function: REM"),
        ("reverse(as)", "unknown function: reverse"),
        ("size()", "size() arity mismatch. Got 0 arg(s), expected 1 arg(s)"),
        ("+1", "ADD(1) arity mismatch. Got 1 arg(s), expected 2 arg(s)"),
        ("matches(as, as)", "invoking instance method without an instance: matches"),
        ("startsWith(as)", "invoking instance method without an instance: startsWith"),
        ("as.size()", "invoking regular function on instance method: size"),
        // Types without an order or equality.
        ("adur == \"19ms\"", "internal compiler error -- equality for type not yet implemented: DURATION"),
        ("ar == ar", "internal compiler error -- equality for type not yet implemented: STRING_MAP"),
        ("ab < true", "internal compiler error -- comparison for type not yet implemented: BOOL"),
        ("aip > aip", "internal compiler error -- comparison for type not yet implemented: IP_ADDRESS"),
        ("adur + \"1s\"", "internal compiler error -- addition for type not yet implemented: DURATION"),
        ("ab + ab", "internal compiler error -- addition for type not yet implemented: BOOL"),
        // What Go parses and Mixer does not.
        ("*as", "unexpected expression: dereference"),
        ("size(as).b", "unexpected expression: size($as).b"),
        ("\"a\".b", "unexpected expression: \"a\".b"),
        ("ar[\"a\"].b", "unexpected expression: INDEX($ar, \"a\").b"),
        ("as{}", "unexpected expression: composite literal"),
        ("'a'", "unexpected expression: 'a'"),
        ("\"a\"()", "unexpected expression: \"a\"()"),
        // What Go does not parse.
        ("", "unable to parse expression '': 1:1: expected operand, found end of expression"),
        ("a ==", "unable to parse expression 'a ==': 1:5: expected operand, found end of expression"),
        ("(a", "unable to parse expression '(a': 1:3: expected ')', found end of expression"),
        ("a b", "unable to parse expression 'a b': 1:3: expected end of expression, found b"),
        ("ar[1:2]", "unable to parse expression 'ar[1:2]': 1:5: unexpected \":\""),
        ("\"a", "unable to parse expression '\"a': 1:1: string literal not terminated"),
        ("\"\\q\"", "unable to parse expression '\"\\q\"': 1:2: unknown escape sequence"),
        ("a.type", "unable to parse expression 'a.type': 1:3: expected selector, found type"),
        ("a ? b", "unable to parse expression 'a ? b': 1:3: illegal character '?'"),
        ("0x10", "unable to parse expression '0x10': 1:1: 0x10 is not a decimal number"),
        (
            "9223372036854775808",
            "unable to parse expression '9223372036854775808': 1:1: 9223372036854775808 does not fit in INT64",
        ),
    ] {
        assert_eq!(run(source).0, format!("compile: {error}"), "{source}");
    }
    assert!(run("\"(\".matches(as)").0.starts_with("compile: invalid regular expression `(`"));
}

#[test]
fn no_input_exhausts_the_stack() {
    let vocabulary = Vocabulary::builtin();
    for source in [
        "(".repeat(60_000),
        "!".repeat(60_000),
        "1+".repeat(30_000),
        "a.".repeat(30_000),
        "1|(".repeat(20_000),
        "x[".repeat(30_000),
        "f(".repeat(30_000),
    ] {
        assert!(Expression::compile(&source, &vocabulary).is_err());
    }
}

#[test]
fn the_denier_sample_refers_to_the_labels_it_reads() {
    use crate::attributes::Builtin;
    let vocabulary = Arc::new(Vocabulary::builtin());
    let rule = "destination.labels[\"app\"] == \"reviews\" && destination.labels[\"version\"] == \"v2\"  && source.labels[\"app\"]==\"web\" ";
    let rule = Expression::compile(rule, &vocabulary).expect("compiles");
    let mut bag = Bag::new(&vocabulary);
    bag.set(
        Builtin::DestinationLabels,
        Value::StringMap([("app", "reviews"), ("version", "v2")].into_iter().collect()),
    );
    let mut refs = References::default();
    assert_eq!(rule.eval(&bag), Err(EvalError::Absent("source.labels".into())));
    bag.set(Builtin::SourceLabels, Value::StringMap([("app", "web")].into_iter().collect()));
    assert_eq!(rule.eval_bool(&bag, &mut refs), Ok(true));
    assert_eq!(
        refs.text(&vocabulary),
        ["destination.labels[app]", "destination.labels[version]", "source.labels[app]"]
    );
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_compiler_or_the_interpreter_panic(
        source in "([a-z.]{1,4}|\"[a-z*0-9]{0,4}\"|[0-9.]{1,3}|ip|match|conditional|ar|as|ms|[-+*/|&=!<>()\\[\\],.` ]{1,3}){0,12}"
    ) {
        run(&source);
    }
}
