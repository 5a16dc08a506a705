//! What is there of a VDI that cannot be used, for whoever tells why.

use super::catalogue::Catalogue;
use super::names::{DataFormat, VdiUuid, data_name};
use super::repository::{DataFile, Repository};

impl Repository {
    /// The data file of a VDI that is there and cannot be used; `None` where there is none, it is
    /// no regular file, or nothing is wrong with it.
    pub fn data_of_broken(&self, catalogue: &Catalogue, vdi: VdiUuid) -> Option<DataFile> {
        let finding = catalogue.findings.iter().find(|finding| finding.broken == Some(vdi))?;
        let formats = [DataFormat::Vhd, DataFormat::Raw];
        let format = formats.into_iter().find(|format| finding.name == data_name(vdi, *format))?;
        // A link, or a device, is told of by its name: what it leads to is nobody's to open.
        self.store.stamp(&finding.name).ok()?;
        Some(DataFile { vdi, format, place: self.store.data_place(&finding.name) })
    }
}
