//! Datagrams of the kernel: links, addresses, routes, neighbours, traffic control, IPsec policies.

use std::net::IpAddr;

use flannel_agent::{
    family::Family,
    kernel::{
        apply,
        decode::{self, Neighbour},
        diff::{Op, permanent},
        dump, events, ipsec,
        netlink::{self, Payload},
        objects::Route,
        traffic_control,
    },
};
use flannel_common::addr::Mac;
use ipnet::{IpNet, Ipv4Net};
use netlink_packet_core::{NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage as Message;

/// A length in a message leads nowhere outside of it; what is understood fits together; and what the agent sends is what
/// it would read.
pub(crate) fn run(bytes: &[u8]) {
    let mut total = 0;
    for (header, payload) in netlink::messages(bytes) {
        total += header.length as usize;
        if let Ok(Payload::Answer(Some(message))) = payload {
            fits_together(&message);
        }
    }
    assert!(total <= bytes.len());
    let inside = events::rtnetlink(bytes, None);
    let outside = events::rtnetlink(bytes, Some(1));
    assert!(outside.iter().all(|event| *event == events::Event::Pod(1)));
    assert!(outside.len() <= inside.len());
    // Bodies of messages that are read as bytes.
    let _ = (ipsec::remote(bytes), traffic_control::is_foreign(bytes));
    for kind in 0..4 {
        let value = dump::attribute(bytes, kind);
        assert!(value.is_none_or(|value| value.len() < bytes.len()));
    }
    requests_are_read_back(bytes);
}

fn fits_together(message: &Message) {
    match message {
        Message::NewLink(message) => {
            let link = decode::link(message);
            assert_eq!(link.index, message.header.index);
            let _ = decode::runs_xdp(message);
        }
        Message::NewAddress(message) => {
            if let Some(address) = decode::address(message) {
                assert_eq!(address.index, message.header.index);
            }
        }
        Message::NewRoute(message) => {
            if let Some((destination, route)) = decode::route(message) {
                let family = Family::of_net(&destination);
                assert!(
                    route
                        .gateway
                        .is_none_or(|gateway| Family::of(gateway) == family)
                );
            }
        }
        Message::NewNeighbour(message) => {
            if let Some((_, Neighbour::Fdb(mac, _))) = decode::neighbour(message) {
                assert!(decode::is_unicast(&mac));
            }
        }
        _ => {}
    }
}

/// Operations with these bytes as their fields.
fn requests_are_read_back(bytes: &[u8]) {
    let Some((fields, _)) = bytes.split_first_chunk::<32>() else {
        return;
    };
    let (device, len, onlink) = (u32::from(fields[0]) + 1, fields[1] % 33, fields[2] & 1 != 0);
    let v4 = |at: usize| <[u8; 4]>::try_from(&fields[at..at + 4]).expect("four bytes");
    let v6 = <[u8; 16]>::try_from(&fields[16..32]).expect("sixteen bytes");
    let mut mac = Mac([fields[3], fields[4], fields[5], fields[6], fields[7], 1]);
    mac.0[0] &= !1;
    let destination =
        IpNet::from(Ipv4Net::new(v4(8).into(), len).expect("a length of IPv4")).trunc();
    let route = Route {
        gateway: Some(v4(12).into()),
        device,
        onlink,
        boot: true,
    };
    assert_eq!(
        sent(&Op::SetRoute(destination, route)),
        Some(events::Event::Route(destination, route, false))
    );
    for address in [IpAddr::from(v4(8)), v6.into()] {
        assert_eq!(
            sent(&Op::SetNeighbour(device, address, mac)),
            neighbour(device, Neighbour::Address(address, permanent(mac)))
        );
        assert_eq!(
            sent(&Op::SetFdb(device, mac, address)),
            neighbour(device, Neighbour::Fdb(mac, permanent(address)))
        );
    }
}

#[expect(clippy::unnecessary_wraps, reason = "compared with what may be none")]
fn neighbour(device: u32, neighbour: Neighbour) -> Option<events::Event> {
    Some(events::Event::Neighbour(device, neighbour, false))
}

/// What the agent would hear if it were told of its own operation.
fn sent(op: &Op) -> Option<events::Event> {
    let (message, _) = apply::request(op);
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut heard = events::rtnetlink(&bytes, None);
    assert!(heard.len() <= 1);
    heard.pop()
}
