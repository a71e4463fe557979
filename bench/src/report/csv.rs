//! The report's samples as CSV, one a line.

use std::io::Write;

use super::Report;

/// The first line.
const COLUMNS: [&str; 10] = [
    "measure",
    "backend",
    "services",
    "rules",
    "bridge netfilter",
    "figure",
    "carrier",
    "unit",
    "round",
    "value",
];

impl Report {
    /// Writes all samples. A round is counted from 1, among those in which the measure was taken; a measure that takes
    /// several samples in a round numbers them through.
    ///
    /// # Errors
    /// If `to` takes no more.
    pub fn csv(&self, to: impl Write) -> csv::Result<()> {
        let mut writer = csv::Writer::from_writer(to);
        writer.write_record(COLUMNS)?;
        for table in &self.tables {
            let services = table.setting.services.to_string();
            let bridge_netfilter = table.setting.bridge_netfilter.to_string();
            for row in &table.rows {
                for (index, sample) in row.samples.iter().enumerate() {
                    writer.write_record([
                        &table.measure,
                        table.setting.backend.name(),
                        &services,
                        table.setting.rules.name(),
                        &bridge_netfilter,
                        &row.figure,
                        row.carrier.name(),
                        row.unit.name(),
                        &(index + 1).to_string(),
                        &sample.to_string(),
                    ])?;
                }
            }
        }
        writer.flush()?;
        Ok(())
    }
}
