//! `txn`: compares and requests from standard input, as etcdctl reads them.
//!
//! Three blocks, each ended by an empty line: compares, requests if all of them hold, requests if not.
//!
//! ```text
//! mod("key1") > "0"
//!
//! put key1 "overwrote-key1"
//!
//! put key1 "created-key1"
//! get key2
//!
//! ```
//!
//! Compares are `version`, `create`, `mod`, `value` or `lease` (or `ver`, `c`, `m`, `val`) of a quoted key, one of `=
//! != < >`, and a quoted value; a lease is compared by its id in hexadecimal.
use super::{DelOptions, GetOptions, PutOptions};
use crate::ctl::connect::Client;
use crate::ctl::failure::Failure;
use crate::ctl::flags;
use crate::ctl::printer::Printer;
use crate::ctl::quote::{quote, split_words, unquote};
use crate::lease::parse_lease_id;
use clap::{Args, Parser};
use std::ffi::OsString;
use std::io::BufRead;
use std::os::unix::ffi::OsStringExt;
use sternpost_server::wire::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use sternpost_server::wire::etcdserverpb::request_op::Request;
use sternpost_server::wire::etcdserverpb::{Compare, RequestOp, TxnRequest};

#[derive(Args)]
pub(crate) struct TxnOptions {
    /// Say before each block what it is
    #[arg(long, short)]
    interactive: bool,
    /// There are none; the transaction comes from standard input
    #[arg(hide = true)]
    arguments: Vec<OsString>,
}

/// A request line inside a transaction.
#[derive(Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
enum Operation {
    Put(PutOptions),
    Get(GetOptions),
    Del(DelOptions),
}

pub(crate) async fn txn(client: &Client, mut printer: Printer, options: TxnOptions) -> Result<(), Failure> {
    if !options.arguments.is_empty() {
        return Err(Failure::bad_arguments("txn command does not accept argument"));
    }
    let mut kv = client.kv().await?;
    let request = read_transaction(&mut std::io::stdin().lock(), options.interactive)?;
    client.check_size(&request)?;
    let response = client.call(kv.txn(request)).await?;
    printer.txn(&response)?;
    printer.flush()
}

fn read_transaction(input: &mut dyn BufRead, interactive: bool) -> Result<TxnRequest, Failure> {
    let say = |title: &str| {
        if interactive {
            println!("{title}");
        }
    };
    say("compares:");
    let compare = read_block(input, parse_compare)?;
    say("success requests (get, put, del):");
    let success = read_block(input, parse_operation)?;
    say("failure requests (get, put, del):");
    let failure = read_block(input, parse_operation)?;
    Ok(TxnRequest { compare, success, failure })
}

/// Lines up to an empty one, which must be there. Each is read when it comes: who types hears of a mistake at once.
fn read_block<T>(
    input: &mut dyn BufRead,
    parse: impl Fn(&str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    let mut items = Vec::new();
    loop {
        let mut line = String::new();
        input.read_line(&mut line).map_err(|error| Failure::invalid_input(error.to_string()))?;
        if !line.ends_with('\n') {
            return Err(Failure::invalid_input("EOF"));
        }
        let line = line.trim();
        if line.is_empty() {
            return Ok(items);
        }
        items.push(parse(line)?);
    }
}

fn parse_operation(line: &str) -> Result<RequestOp, Failure> {
    let words = split_words(line).map_err(Failure::invalid_input)?;
    if words.len() < 2 {
        return Err(Failure::invalid_input(format!("invalid txn compare request: {line}")));
    }
    let operation = flags::parse::<Operation>(words.into_iter().map(OsString::from_vec))
        .map_err(|_| Failure::invalid_input(format!("invalid txn request: {line}")))?;
    let request = match operation {
        Operation::Put(put) => Request::RequestPut(put.request(None)?),
        Operation::Get(get) => Request::RequestRange(get.request()?),
        Operation::Del(del) => Request::RequestDeleteRange(del.request()?),
    };
    Ok(RequestOp { request: Some(request) })
}

/// As much of a compare behind its target as could be read.
struct Scanned<'a> {
    key: Option<Vec<u8>>,
    operator: Option<&'a str>,
    value: Option<Vec<u8>>,
}

fn scan_compare(text: &str) -> Scanned<'_> {
    let mut scanned = Scanned { key: None, operator: None, value: None };
    let Some((key, rest)) = unquote(text) else { return scanned };
    scanned.key = Some(key);
    let Some(rest) = rest.strip_prefix(')') else { return scanned };
    let rest = rest.trim_start();
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    scanned.operator = Some(&rest[..end]).filter(|operator| !operator.is_empty());
    scanned.value = unquote(rest[end..].trim_start()).map(|(value, _)| value);
    scanned
}

fn parse_compare(line: &str) -> Result<Compare, Failure> {
    let malformed = || Failure::invalid_input(format!("malformed comparison: {line}"));
    let (target, rest) = line.split_once('(').ok_or_else(malformed)?;
    let scanned = scan_compare(rest);
    let Scanned { key: Some(key), operator: Some(operator), value: Some(value) } = scanned else {
        let Scanned { key, operator, value } = scanned;
        let (key, operator) = (quote(&key.unwrap_or_default()), operator.unwrap_or_default());
        let value = quote(&value.unwrap_or_default());
        let got = format!("{target}({key}) {operator} {value}");
        return Err(Failure::invalid_input(format!("malformed comparison: {line}; got {got}")));
    };
    let result = match operator {
        "=" => CompareResult::Equal,
        "!=" => CompareResult::NotEqual,
        ">" => CompareResult::Greater,
        "<" => CompareResult::Less,
        _ => return Err(malformed()),
    };
    let invalid = || Failure::invalid_input(format!("invalid txn compare request: {line}"));
    let number = |value: &[u8]| -> Result<i64, Failure> {
        std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(invalid)
    };
    let (target, union) = match target {
        "ver" | "version" => (CompareTarget::Version, TargetUnion::Version(number(&value)?)),
        "c" | "create" => (CompareTarget::Create, TargetUnion::CreateRevision(number(&value)?)),
        "m" | "mod" => (CompareTarget::Mod, TargetUnion::ModRevision(number(&value)?)),
        "val" | "value" => (CompareTarget::Value, TargetUnion::Value(value.into())),
        "lease" => {
            let id = std::str::from_utf8(&value).ok().and_then(|text| parse_lease_id(text).ok());
            (CompareTarget::Lease, TargetUnion::Lease(id.ok_or_else(invalid)?))
        }
        unknown => {
            let unknown = format!("{} (unknown target {unknown})", line);
            return Err(Failure::invalid_input(format!("malformed comparison: {unknown}")));
        }
    };
    Ok(Compare {
        result: result.into(),
        target: target.into(),
        key: key.into(),
        range_end: bytes::Bytes::new(),
        target_union: Some(union),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<TxnRequest, String> {
        read_transaction(&mut text.as_bytes(), false).map_err(|failure| failure.message)
    }

    #[test]
    fn three_blocks_make_a_transaction() {
        let text = "mod(\"a b\") > \"0\"\nval(\"k\") != \"x\\ny\"\nlease(\"l\") = \"1f\"\n\nput a \"b c\"\nget p --prefix\n\ndel q --prev-kv\n\n";
        let request = read(text).unwrap();
        assert_eq!(request.compare.len(), 3);
        assert_eq!(request.compare[0].key, "a b");
        assert_eq!(request.compare[0].target_union, Some(TargetUnion::ModRevision(0)));
        assert_eq!(request.compare[1].target_union, Some(TargetUnion::Value("x\ny".into())));
        assert_eq!(request.compare[2].target_union, Some(TargetUnion::Lease(31)));
        assert_eq!((request.success.len(), request.failure.len()), (2, 1));
        let Some(Request::RequestPut(put)) = &request.success[0].request else { panic!("a put was typed") };
        assert_eq!((&put.key[..], &put.value[..]), (&b"a"[..], &b"b c"[..]));
    }

    #[test]
    fn what_is_not_a_transaction_is_refused_in_etcdctls_words() {
        let cases = [
            ("mod(\"a\") > \"0\"\n", "EOF"),
            ("", "EOF"),
            ("mod(a) > \"0\"\n\n\n\n", "malformed comparison: mod(a) > \"0\"; got mod(\"\")  \"\""),
            ("mod(\"a\") >\n\n\n\n", "malformed comparison: mod(\"a\") >; got mod(\"a\") > \"\""),
            ("mod(\"a\") ~ \"0\"\n\n\n\n", "malformed comparison: mod(\"a\") ~ \"0\""),
            ("mod(\"a\") > \"x\"\n\n\n\n", "invalid txn compare request: mod(\"a\") > \"x\""),
            ("foo(\"a\") > \"1\"\n\n\n\n", "malformed comparison: foo(\"a\") > \"1\" (unknown target foo)"),
            ("\nfrob a b\n\n\n", "invalid txn request: frob a b"),
            ("\nput\n\n\n", "invalid txn compare request: put"),
            ("\nput a b --nosuch\n\n\n", "invalid txn request: put a b --nosuch"),
        ];
        for (text, message) in cases {
            assert_eq!(read(text).unwrap_err(), message, "{text}");
        }
    }
}
