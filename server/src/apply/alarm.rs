//! Alarms: which member says what, replicated, kept over restarts until somebody disarms them.
use super::records;
use crate::wire::etcdserverpb::alarm_request::AlarmAction;
use crate::wire::etcdserverpb::{AlarmMember, AlarmRequest, AlarmType};
use std::collections::BTreeSet;
use sternpost_engine::mvcc::{Store, StoreWriter};

/// Active alarms as (type, member id).
#[derive(Default)]
pub(super) struct AlarmTable {
    active: BTreeSet<(i32, u64)>,
}

impl AlarmTable {
    /// What the system records hold.
    pub(super) fn load(store: &Store) -> Self {
        Self {
            active: records::alarms(store).into_iter().map(|alarm| (alarm.alarm, alarm.member_id)).collect(),
        }
    }

    /// True while no alarm is active: the case that every write checks first.
    pub(super) fn is_quiet(&self) -> bool {
        self.active.is_empty()
    }

    /// True while a member says `kind`.
    pub(super) fn has(&self, kind: AlarmType) -> bool {
        self.active.range((kind as i32, 0)..=(kind as i32, u64::MAX)).next().is_some()
    }

    /// Alarms of type `kind`; NONE is every type.
    pub(super) fn list(&self, kind: i32) -> Vec<AlarmMember> {
        let wanted = |found: i32| kind == AlarmType::None as i32 || found == kind;
        let found = self.active.iter().filter(|(alarm, _)| wanted(*alarm));
        found.map(|&(alarm, member_id)| AlarmMember { member_id, alarm }).collect()
    }

    /// Does what `request` says and answers the alarms concerned: one that is activated again is answered again, one that
    /// is not active cannot be taken back, NONE can be neither.
    pub(super) fn apply(&mut self, writer: &mut StoreWriter, request: &AlarmRequest) -> Vec<AlarmMember> {
        let alarm = AlarmMember { member_id: request.member_id, alarm: request.alarm };
        let entry = (alarm.alarm, alarm.member_id);
        match AlarmAction::try_from(request.action) {
            Ok(AlarmAction::Get) => self.list(request.alarm),
            Ok(AlarmAction::Activate) if alarm.alarm != AlarmType::None as i32 => {
                if self.active.insert(entry) {
                    records::put_alarm(writer, alarm);
                }
                vec![alarm]
            }
            Ok(AlarmAction::Deactivate) if self.active.remove(&entry) => {
                records::delete_alarm(writer, alarm);
                vec![alarm]
            }
            _ => Vec::new(),
        }
    }
}
