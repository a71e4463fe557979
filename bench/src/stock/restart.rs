//! The start of flanneld on a node that is set up already, by an earlier run or by something else in its place.

use serde_json::Value;

use super::{
    State, Stock, devices, lease_of_number,
    netconf::{Backend, Kind, NetConf},
    not_started, rules,
};
use crate::{
    error::{Error, Result},
    process, underlay,
};

impl Stock {
    /// Does what flanneld does when it starts again: finds its lease by its address and publishes it anew, keeps its
    /// VXLAN device unless that differs from what it would make, refills its chains, writes `subnet.env`, and replaces
    /// all peers' entries.
    ///
    /// # Errors
    /// If the node has never been started or has no lease, for a backend whose device goes with its process, or if a
    /// command fails.
    pub fn restart(&self) -> Result<()> {
        let config = NetConf::parse(&self.network_config)?;
        let (subnet, subnet6) = {
            let state = self.state();
            let state = state.as_ref().ok_or_else(not_started)?;
            (state.subnet, state.subnet6)
        };
        let leases = self.store.leases()?;
        let own = |lease: &&crate::lease::Lease| lease.value.public_ip == self.address;
        if leases.iter().find(own).map(|lease| lease.subnet) != Some(subnet) {
            return Err(Error::Unsupported(format!(
                "n{} has lost its lease of {subnet}",
                self.number
            )));
        }
        match config.kind {
            Kind::HostGw => {}
            Kind::Vxlan => self.keep_or_make_device(&config)?,
            Kind::Ipip | Kind::Udp => {
                let reason = "stock nodes of this backend cannot be started again";
                return Err(Error::Unsupported(reason.to_owned()));
            }
        }
        self.publish_again()?;
        rules::install(&self.netns, &config, subnet, subnet6)?;
        self.write_subnet_file(&config, subnet, subnet6)?;
        if let Some(State { peers, .. }) = self.state().as_mut() {
            peers.clear();
        }
        self.refresh()
    }

    /// Publishes the lease that the node has, with its value as at the start.
    fn publish_again(&self) -> Result<()> {
        let value = lease_of_number(
            &self.network_config,
            self.number,
            self.address,
            self.address6,
        )?;
        match self.store.etcd() {
            // The key goes on living as long as it has.
            Some(etcd) => etcd
                .ctl(&["put", "--ignore-lease", "--", &self.key()?, &value])
                .map(drop),
            None => self.store.publish(&self.name(), &value),
        }
    }

    /// Of the devices of a dual-stack node only IPv4's is looked at.
    fn keep_or_make_device(&self, config: &NetConf) -> Result<()> {
        let name = devices::vxlan(&config.backend);
        let show = ["-json", "-details", "link", "show", &name];
        let shown = process::run(Some(&self.netns), "ip", &show).unwrap_or_default();
        let links: Value = serde_json::from_str(&shown).unwrap_or_default();
        if self.is_as_wanted(&links[0], &config.backend) {
            return Ok(());
        }
        if !links[0].is_null() {
            underlay::ip_batch(&self.netns, &format!("link delete {name}\n"))?;
        }
        let (subnet, subnet6) = {
            let state = self.state();
            let state = state.as_ref().ok_or_else(not_started)?;
            (state.subnet, state.subnet6)
        };
        let mtu = self.mtu - config.kind.overhead();
        self.make_devices(config, subnet, subnet6, mtu).map(drop)
    }

    /// What upstream compares of a device (`vxlanLinksIncompat` in its `device.go`): identifier, parent, local address, group,
    /// `l2miss`, port and `gbp`; neither MTU, MAC address nor learning.
    fn is_as_wanted(&self, link: &Value, backend: &Backend) -> bool {
        let data = &link["linkinfo"]["info_data"];
        let is_set = |name: &str| data[name].as_bool() == Some(true);
        data["id"].as_u64() == Some(backend.vni().into())
            && data["link"] == "eth0"
            && data["local"] == self.address.to_string()
            && data["group"].is_null()
            && !is_set("l2miss")
            && data["port"].as_u64() == Some(backend.vxlan_port().into())
            && !is_set("gbp")
    }
}
