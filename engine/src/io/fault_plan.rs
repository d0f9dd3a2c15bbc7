//! fault_plan
