//! Transactions: which branches run, whether they may, and their execution.
//!
//! Three passes over the tree, each in the same order: `evaluate` decides every branch on the state before the
//! transaction; `check` refuses what etcd refuses, before the first write; `execute` cannot fail. Between the passes
//! stands the *path*: one bool per transaction on the executed branches, outermost first, nested ones in order.
//!
//! Source of the rules: `server/etcdserver/txn/txn.go` of etcd 3.7. Depth: the log's encoding bounds nesting (128), and so
//! does etcd's operation budget, so recursion here is bounded by its callers.
use super::found::Found;
use super::operation::*;
use super::range;
use super::store::Leases;
use super::view_set::ViewSet;
use super::writer::{Changes, StoreWriter, check_lease};
use crate::error::{OperationError, Result};
use crate::memtable::Newest;
use std::cmp::Ordering as Compared;

/// Refuses empty keys, in both branches.
pub(super) fn check_keys(txn: &Txn) -> Result<(), OperationError> {
    let empty_compare = txn.compares.iter().any(|compare| compare.range.key.is_empty());
    if empty_compare {
        return Err(OperationError::EmptyKey);
    }
    for operation in txn.success.iter().chain(&txn.failure) {
        let key = match operation {
            TxnOperation::Range(range) => &range.range.key,
            TxnOperation::Put(put) => &put.key,
            TxnOperation::DeleteRange(delete) => &delete.range.key,
            TxnOperation::Txn(nested) => {
                check_keys(nested)?;
                continue;
            }
        };
        if key.is_empty() {
            return Err(OperationError::EmptyKey);
        }
    }
    Ok(())
}

/// What is noted of a key before the transaction: nothing, that it does not exist, or its newest version.
pub(super) type Noted<'a> = &'a mut dyn FnMut(&[u8]) -> Option<Option<Newest>>;

/// Decides all branches on the state at `main`; returns the path. What is `noted` of a key need not be read.
pub(super) fn evaluate(
    txn: &Txn,
    view: &ViewSet,
    main: i64,
    noted: Noted<'_>,
) -> Result<Vec<bool>, OperationError> {
    let mut path = Vec::with_capacity(1);
    evaluate_into(txn, view, main, noted, &mut path)?;
    Ok(path)
}

fn evaluate_into(
    txn: &Txn,
    view: &ViewSet,
    main: i64,
    noted: Noted<'_>,
    path: &mut Vec<bool>,
) -> Result<(), OperationError> {
    let mut succeeded = true;
    for compare in &txn.compares {
        succeeded = match holds_as_noted(compare, noted) {
            Some(holds) => holds,
            None => holds(compare, view, main)?,
        };
        if !succeeded {
            break;
        }
    }
    path.push(succeeded);
    for operation in branch(txn, succeeded) {
        if let TxnOperation::Txn(nested) = operation {
            evaluate_into(nested, view, main, noted, path)?;
        }
    }
    Ok(())
}

fn branch(txn: &Txn, succeeded: bool) -> &[TxnOperation] {
    if succeeded { &txn.success } else { &txn.failure }
}

/// Walks a path.
struct Path<'a>(std::slice::Iter<'a, bool>);

impl Path<'_> {
    fn next(&mut self) -> bool {
        *self.0.next().expect("the path has one entry for each executed transaction")
    }
}

/// [`holds`] for a single key of which everything is noted that the compare asks for.
fn holds_as_noted(compare: &Compare, noted: Noted<'_>) -> Option<bool> {
    let of = |field: fn(&Newest) -> i64, newest: &Option<Newest>| newest.as_ref().map_or(0, field);
    let (field, given): (fn(&Newest) -> i64, i64) = match compare.target {
        CompareTarget::Version(given) => (|newest| newest.version, given),
        CompareTarget::Create(given) => (|newest| newest.create_revision, given),
        CompareTarget::Mod(given) => (|newest| newest.revision.main, given),
        CompareTarget::Lease(given) => (|newest| newest.lease, given),
        CompareTarget::Value(_) | CompareTarget::Unknown => return None,
    };
    let newest = noted(compare.range.single()?)?;
    Some(relation_holds(compare.result, of(field, &newest).cmp(&given)))
}

/// A compare must hold for every key of its range; where no key exists, for a key of zeroes, except that a value
/// compares false.
fn holds(compare: &Compare, view: &ViewSet, main: i64) -> Result<bool, OperationError> {
    let (mut any, mut all) = (false, true);
    view.scan(compare.range.bounds(), main, |_, found| {
        any = true;
        all = relation_holds(compare.result, compare_found(&compare.target, Some(&found), view)?);
        Ok(all)
    })?;
    if any {
        return Ok(all);
    }
    Ok(!matches!(compare.target, CompareTarget::Value(_))
        && relation_holds(compare.result, compare_found(&compare.target, None, view)?))
}

fn compare_found(
    target: &CompareTarget,
    found: Option<&Found<'_>>,
    view: &ViewSet,
) -> Result<Compared, OperationError> {
    Ok(match target {
        CompareTarget::Version(given) => found.map_or(0, Found::version).cmp(given),
        CompareTarget::Create(given) => found.map_or(0, Found::create_revision).cmp(given),
        CompareTarget::Mod(given) => found.map_or(0, Found::main).cmp(given),
        CompareTarget::Lease(given) => found.map_or(0, Found::lease).cmp(given),
        CompareTarget::Value(given) => match found {
            Some(found) => found.with_value(view, |value| value.cmp(given))?,
            None => [][..].cmp(&given[..]),
        },
        CompareTarget::Unknown => Compared::Equal,
    })
}

fn relation_holds(relation: CompareResult, found: Compared) -> bool {
    match relation {
        CompareResult::Equal => found == Compared::Equal,
        CompareResult::NotEqual => found != Compared::Equal,
        CompareResult::Greater => found == Compared::Greater,
        CompareResult::Less => found == Compared::Less,
        CompareResult::Unknown => true,
    }
}

/// Refuses what etcd refuses on the executed branches: ranges at revisions that cannot be read, leases that do not
/// exist, `ignore_*` puts of keys that do not exist at `head`.
///
/// One case is ours: a key that exists before the transaction but is deleted by it before an `ignore_*` put counts as
/// missing (etcd would crash; its duplicate-key rule lets this through for deletes with an open end).
pub(super) fn check(
    txn: &Txn,
    path: &[bool],
    view: &ViewSet,
    head: i64,
    leases: &dyn Leases,
) -> Result<(), OperationError> {
    let mut deletes = Vec::new();
    check_branch(txn, &mut Path(path.iter()), view, head, leases, &mut deletes)
}

fn check_branch<'a>(
    txn: &'a Txn,
    path: &mut Path<'_>,
    view: &ViewSet,
    head: i64,
    leases: &dyn Leases,
    deletes: &mut Vec<&'a KeyRange>,
) -> Result<(), OperationError> {
    for operation in branch(txn, path.next()) {
        match operation {
            // Unlike a single range, one in a transaction takes only 0 for "now": negative revisions are compacted.
            TxnOperation::Range(Range { revision: 0, .. }) => {}
            TxnOperation::Range(range) if range.revision > head => {
                return Err(OperationError::FutureRevision(head));
            }
            TxnOperation::Range(range) if range.revision < view.compact_revision => {
                return Err(OperationError::Compacted(view.compact_revision));
            }
            TxnOperation::Range(_) => {}
            TxnOperation::Put(put) => {
                check_lease(put, leases)?;
                if (put.ignore_value || put.ignore_lease)
                    && (view.live(&put.key, head)?.is_none()
                        || deletes.iter().any(|range| range.bounds().contains(&put.key)))
                {
                    return Err(OperationError::KeyNotFound);
                }
            }
            TxnOperation::DeleteRange(delete) => deletes.push(&delete.range),
            TxnOperation::Txn(nested) => check_branch(nested, path, view, head, leases, deletes)?,
        }
    }
    Ok(())
}

/// The puts on the executed branches, in their order.
pub(super) fn puts<'a>(txn: &'a Txn, path: &[bool]) -> Vec<&'a Put> {
    let mut puts = Vec::new();
    puts_of_branch(txn, &mut Path(path.iter()), &mut puts);
    puts
}

fn puts_of_branch<'a>(txn: &'a Txn, path: &mut Path<'_>, puts: &mut Vec<&'a Put>) {
    for operation in branch(txn, path.next()) {
        match operation {
            TxnOperation::Put(put) => puts.push(put),
            TxnOperation::Txn(nested) => puts_of_branch(nested, path, puts),
            TxnOperation::Range(_) | TxnOperation::DeleteRange(_) => {}
        }
    }
}

/// Runs the executed branches. Answers of inner operations carry the revision that etcd's inner headers carry: a range
/// the one that it saw, a put and a delete the new one (a delete of nothing before any change: the current one), a
/// nested transaction 0. The outermost revision is the caller's to set.
///
/// # Errors
/// Only if something on disk cannot be read. Then changes of this transaction may be half done, and nothing may be
/// applied to this store any more.
pub(super) fn execute(
    writer: &mut StoreWriter,
    txn: &Txn,
    path: &[bool],
    changes: &mut Changes,
) -> Result<TxnOutcome, OperationError> {
    execute_branch(writer, txn, &mut Path(path.iter()), changes)
}

fn execute_branch(
    writer: &mut StoreWriter,
    txn: &Txn,
    path: &mut Path<'_>,
    changes: &mut Changes,
) -> Result<TxnOutcome, OperationError> {
    let succeeded = path.next();
    let operations = branch(txn, succeeded);
    let mut responses = Vec::with_capacity(operations.len());
    for operation in operations {
        responses.push(match operation {
            TxnOperation::Range(range) => {
                let revision = changes.revision();
                let main = if range.revision <= 0 { revision } else { range.revision };
                TxnOperationOutcome::Range(changes.answer(range::read(
                    &writer.view,
                    range,
                    main,
                    revision,
                ))?)
            }
            TxnOperation::Put(put) => match writer.put_one(put, changes) {
                Ok(outcome) => TxnOperationOutcome::Put(outcome),
                Err(OperationError::Unreadable(what)) => return Err(OperationError::Unreadable(what)),
                Err(refused) => panic!("M6: a checked put is not refused: {refused}"),
            },
            TxnOperation::DeleteRange(delete) => {
                TxnOperationOutcome::DeleteRange(writer.delete_all(delete, changes)?)
            }
            TxnOperation::Txn(nested) => {
                TxnOperationOutcome::Txn(execute_branch(writer, nested, path, changes)?)
            }
        });
    }
    Ok(TxnOutcome { revision: 0, succeeded, responses })
}
