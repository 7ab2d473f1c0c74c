//! The virtual GPU as a driver.
use super::Driver;
use crate::{EmulatorOptions, Result};
pub(crate) fn open(_: EmulatorOptions) -> Result<Box<dyn Driver>> {
    Err(crate::Error::NoDevice("not merged".into()))
}
