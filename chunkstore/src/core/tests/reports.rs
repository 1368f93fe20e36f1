//! PUT_REPORT, GET_REPORT, and the times that a shard tells of itself.

use super::requests::release;
use super::*;
use ukai_meta::report::ServiceReport;
use ukai_proto::message::{Report, ReportKind};

fn put(node: &mut Node, token: u32, page: u32, body: &[u8]) -> Status {
    let header = Header {
        token: Token(token),
        ..on(Opcode::PutReport)
    };
    node.ask(header, report(ReportKind::HEAT, page, body), None)
        .header
        .status
}

fn report(kind: ReportKind, page: u32, body: &[u8]) -> Vec<u8> {
    let body = body.to_vec();
    Report { kind, page, body }.encode()
}

fn get(node: &mut Node, header: Header, kind: ReportKind, page: u32) -> Result<Vec<u8>, Status> {
    let reply = node.ask(header, report(kind, page, b""), None);
    match reply.header.status {
        Status::Ok => {
            let answer = Report::decode(&reply.aux).expect("a report");
            assert_eq!((answer.kind, answer.page), (kind, page));
            Ok(answer.body)
        }
        status => Err(status),
    }
}

fn heat(node: &mut Node, page: u32) -> Result<Vec<u8>, Status> {
    get(node, on(Opcode::GetReport), ReportKind::HEAT, page)
}

#[test]
fn only_the_front_reports_and_everybody_may_ask() {
    let mut node = Node::new(1);
    assert_eq!(put(&mut node, 1, 0, b"a"), Status::NotFenced);
    assert_eq!(node.fence(1, 0), Status::Ok);
    assert_eq!(heat(&mut node, 0), Err(Status::NotFound));
    assert_eq!(put(&mut node, 1, 0, b"a"), Status::Ok);
    assert_eq!(put(&mut node, 1, 7, b"b"), Status::Ok);
    assert_eq!(put(&mut node, 1, 0, b"cc"), Status::Ok);
    assert_eq!(node.fence(2, 0), Status::Ok);
    // What the former front said stays until the next one says something.
    assert_eq!(put(&mut node, 1, 0, b"zombie"), Status::StaleToken);
    assert_eq!(heat(&mut node, 0), Ok(b"cc".to_vec()));
    assert_eq!(put(&mut node, 2, 0, b""), Status::Ok);
    node.event(ShardEvent::LeaseLost);
    assert_eq!(put(&mut node, 2, 0, b"late"), Status::NoLease);
    assert_eq!(heat(&mut node, 0), Ok(Vec::new()));
    assert_eq!(heat(&mut node, 7), Ok(b"b".to_vec()));
    let header = on(Opcode::GetReport);
    let front = get(&mut node, header, ReportKind::FRONT, 0);
    assert_eq!(front, Err(Status::NotFound));
}

#[test]
fn a_deleted_volume_leaves_no_report() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 0), Status::Ok);
    assert_eq!(put(&mut node, 1, 0, b"a"), Status::Ok);
    let delete = Header {
        token: Token(1),
        ..on(Opcode::DeleteVolume)
    };
    assert_eq!(node.status(delete), Status::Ok);
    assert_eq!(heat(&mut node, 0), Err(Status::NotFound));
}

#[test]
fn malformed_reports_are_refused() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 0), Status::Ok);
    let header = Header {
        token: Token(1),
        ..on(Opcode::PutReport)
    };
    let mut cut = report(ReportKind::HEAT, 0, &[1; 100]);
    cut.truncate(64);
    for aux in [Vec::new(), cut, report(ReportKind::SERVICE, 0, b"{}")] {
        let status = node.ask(header, aux, None).header.status;
        assert_eq!(status, Status::BadRequest);
    }
    assert_eq!(node.status(on(Opcode::GetReport)), Status::BadRequest);
}

#[test]
fn the_shard_tells_its_service_times_and_so_does_each_write() {
    let mut node = Node::new(1);
    assert_eq!(node.fence(1, 0), Status::Ok);
    node.core.store.hold = true;
    let write = write_header(1, 9, 0, 1);
    let data = content(&[1]);
    let aux = crc_table(0, crc::sector_crcs(&data));
    let tag = node.send(write, aux, Some(data));
    node.now += 2_000_000;
    release(&mut node);
    let reply = node.reply(tag).expect("answered").header;
    assert_eq!((reply.status, reply.seq), (Status::Ok, Seq(2_000_000)));
    node.core.store.hold = true;
    let read = node.send(ranged(Opcode::Read, 1, 0, 1), Vec::new(), None);
    node.now += 500_000;
    release(&mut node);
    assert!(node.reply(read).is_some());
    let nobody = Header::request(Opcode::GetReport, 0);
    let body = get(&mut node, nobody, ReportKind::SERVICE, 0).expect("its own");
    let service = ServiceReport::decode(&body).expect("JSON");
    let near = |points: Option<ukai_meta::LatencyPoints>, us: f64| {
        let points = points.expect("one sample");
        assert_eq!(points.count, 1);
        assert!((points.quantile(0.5) / us - 1.0).abs() < 0.02, "{points:?}");
    };
    near(service.read, 500.0);
    near(service.write, 2000.0);
}
