//! What fronts and nodes tell of themselves, as any node of the volume keeps it: latencies, heat, service
//! times. Asked from any host, also after the front died.

use crate::client::{ClientError, NodeClient, block_on, shards};
use crate::context::Names;
use crate::table::warn;
use ukai_meta::map::VolumeMap;
use ukai_meta::report::{FrontReport, ServiceReport};
use ukai_meta::{LatencyPoints, NodeRecord};
use ukai_proto::heat::{ChunkHeat, HEAT_PAGE_CHUNKS, HeatPage};
use ukai_proto::message::{MessageError, Report, ReportKind};
use ukai_proto::route::shard_of;
use ukai_proto::{ChunkIndex, ClusterId, Header, Opcode, Status, VolumeId};

/// What a volume's front told last.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Told {
    pub(crate) front: FrontReport,
    /// Use of each chunk, from chunk 0 on; shorter than the volume if its end is not used. `None`: not told.
    pub(crate) heat: Option<HeatTold>,
}

/// Heat of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HeatTold {
    /// Seconds for which it was measured.
    pub(crate) age_s: u32,
    pub(crate) half_life_s: u32,
    pub(crate) chunks: Vec<ChunkHeat>,
}

/// The newest report of the volume's front that any of its nodes has. Nodes that do not answer are warned
/// about.
pub(crate) fn front(cluster: ClusterId, names: &Names, map: &VolumeMap) -> Option<FrontReport> {
    block_on(newest(cluster, names, map, Silent::No)).map(|(front, _)| front)
}

/// The same for those who ask again and again: nodes that do not answer are passed over without a word.
pub(crate) fn front_silently(
    cluster: ClusterId,
    names: &Names,
    map: &VolumeMap,
) -> Option<FrontReport> {
    block_on(newest(cluster, names, map, Silent::Yes)).map(|(front, _)| front)
}

/// Whether nodes that do not answer are warned about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Silent {
    Yes,
    No,
}

async fn newest(
    cluster: ClusterId,
    names: &Names,
    map: &VolumeMap,
    silent: Silent,
) -> Option<(FrontReport, NodeRecord)> {
    let mut newest: Option<(FrontReport, NodeRecord)> = None;
    for node in map.nodes() {
        let Some(state) = names.state(node).filter(|state| state.live.is_some()) else {
            continue;
        };
        match front_at(cluster, &state.record, map.head.volume).await {
            Ok(Some(front)) => {
                let key = |front: &FrontReport| (front.token, front.at_unix_s);
                if newest
                    .as_ref()
                    .is_none_or(|(known, _)| key(&front) > key(known))
                {
                    newest = Some((front, state.record.clone()));
                }
            }
            Ok(None) => {}
            Err(_) if silent == Silent::Yes => {}
            Err(error) => warn(&format!(
                "node {} does not answer: {error}",
                state.record.name
            )),
        }
    }
    newest
}

/// The same, with the heat that this node was told.
pub(crate) fn told(cluster: ClusterId, names: &Names, map: &VolumeMap) -> Option<Told> {
    block_on(async {
        let (front, record) = newest(cluster, names, map, Silent::No).await?;
        let heat = match heat_at(cluster, &record, map).await {
            Ok(heat) => heat,
            Err(error) => {
                warn(&format!(
                    "the heat of volume {} cannot be read: {error}",
                    map.head.name
                ));
                None
            }
        };
        Some(Told { front, heat })
    })
}

async fn connect(
    cluster: ClusterId,
    record: &NodeRecord,
    volume: VolumeId,
) -> Result<NodeClient, ClientError> {
    NodeClient::connect(
        cluster,
        record,
        shard_of(volume, ChunkIndex(0), record.shard_count),
    )
    .await
}

/// `None`: the node has none.
async fn get(
    client: &mut NodeClient,
    volume: VolumeId,
    kind: ReportKind,
    page: u32,
) -> Result<Option<Vec<u8>>, ClientError> {
    let request = Header {
        volume,
        ..Header::request(Opcode::GetReport, 0)
    };
    let aux = Report {
        kind,
        page,
        body: Vec::new(),
    }
    .encode();
    match client.request(request, aux).await {
        Ok(reply) => Ok(Some(Report::decode(&reply.aux)?.body)),
        Err(ClientError::Refused(Status::NotFound)) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn front_at(
    cluster: ClusterId,
    record: &NodeRecord,
    volume: VolumeId,
) -> Result<Option<FrontReport>, ClientError> {
    let mut client = connect(cluster, record, volume).await?;
    let body = get(&mut client, volume, ReportKind::FRONT, 0).await?;
    body.map(|body| FrontReport::decode(&body))
        .transpose()
        .map_err(|_| ClientError::Message(MessageError("front report")))
}

async fn heat_at(
    cluster: ClusterId,
    record: &NodeRecord,
    map: &VolumeMap,
) -> Result<Option<HeatTold>, ClientError> {
    let mut client = connect(cluster, record, map.head.volume).await?;
    let mut out: Option<HeatTold> = None;
    for page in 0..map.chunk_count().div_ceil(HEAT_PAGE_CHUNKS) {
        // Pages without any use are not told.
        let Some(body) = get(&mut client, map.head.volume, ReportKind::HEAT, page).await? else {
            continue;
        };
        let told = HeatPage::decode(&body)?;
        let heat = out.get_or_insert_with(|| HeatTold {
            age_s: 0,
            half_life_s: told.half_life_s,
            chunks: Vec::new(),
        });
        heat.age_s = heat.age_s.max(told.age_s);
        heat.chunks
            .resize((page * HEAT_PAGE_CHUNKS) as usize, ChunkHeat::default());
        heat.chunks.extend(told.chunks);
    }
    Ok(out)
}

/// Time inside a node, over all its shards; what it has not done lately is `None`.
pub(crate) async fn service(
    cluster: ClusterId,
    record: &NodeRecord,
) -> Result<ServiceReport, ClientError> {
    let (mut read, mut write) = (Vec::new(), Vec::new());
    for shard in shards(record) {
        let mut client = NodeClient::connect(cluster, record, shard).await?;
        let Some(body) = get(&mut client, VolumeId::NIL, ReportKind::SERVICE, 0).await? else {
            continue;
        };
        let told = ServiceReport::decode(&body)
            .map_err(|_| ClientError::Message(MessageError("service report")))?;
        read.extend(told.read);
        write.extend(told.write);
    }
    Ok(ServiceReport {
        read: LatencyPoints::mixture(&read),
        write: LatencyPoints::mixture(&write),
    })
}
