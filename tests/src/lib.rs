//! What the two halves of the integration tests share: the host's, which boots guests with `cargo xtask vm run` as a
//! user would, and the guest's (`manycore-guest`), which runs the cases and looks at the machine from outside the
//! schedulers.
//!
//! To test another scheduler, add it to [`plan::SCHEDULERS`]; to test it on another machine, add that to
//! [`plan::GUESTS`]; to look at something else, add a case to [`plan::CASES`] and its function to `guest/cases/`.

pub mod boot;
pub mod machine;
pub mod plan;
pub mod report;
pub mod results;
