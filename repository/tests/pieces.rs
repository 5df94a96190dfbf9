//! Pieces of a segment that is being written: what is put together from them is never anything but the segment's bytes.

use std::io::Read;

use pgark_postgres::{SegmentName, WalFileName};
use pgark_repository::{
    ClusterRepository, PreparedPiece, PreparedWalFile, RepositoryError, Sealing, WalCompressor, WalPiece, WalStored,
};

use crate::place::{Keys, Place, decrypting, encrypted, noise, open};

const SEGMENT: &str = "00000001000000000000000A";

fn segment(text: &str) -> SegmentName {
    match text.parse().unwrap() {
        WalFileName::Segment(segment) => segment,
        other => panic!("{other} is no segment"),
    }
}

async fn put(repository: &ClusterRepository, raw: &[u8], start: usize, end: usize) -> WalStored {
    repository.store_wal_piece(&piece_of(segment(SEGMENT), raw, start, end)).await.unwrap()
}

fn piece_of(segment: SegmentName, raw: &[u8], start: usize, end: usize) -> PreparedPiece {
    let piece = WalPiece { start: start as u32, end: end as u32 };
    PreparedPiece::read(&WalCompressor::new(1, 1), segment, piece, &raw[start..end]).unwrap()
}

async fn assembled(repository: &ClusterRepository) -> Vec<u8> {
    repository.assemble_segment(segment(SEGMENT)).await.unwrap().unwrap_or_default()
}

async fn comes_together(place: Place) {
    let raw = noise(7, 1 << 20);
    let keys = Keys::new();
    let options = place.options();
    let (writer, reader) = (open(&encrypted(&options, &keys)), open(&decrypting(&options, &keys)));
    assert_eq!(put(&writer, &raw, 0, 1000).await, WalStored::New);
    assert_eq!(put(&writer, &raw, 1000, 70_000).await, WalStored::New);
    assert_eq!(put(&writer, &raw, 1000, 70_000).await, WalStored::AlreadyThere);
    assert_eq!(assembled(&reader).await, raw[..70_000]);
    // Over the border of others, within others, and behind a hole.
    put(&writer, &raw, 500, 80_000).await;
    put(&writer, &raw, 10, 20).await;
    put(&writer, &raw, 80_001, 90_000).await;
    assert_eq!(assembled(&reader).await, raw[..80_000]);
    let inventory = reader.wal_inventory().await.unwrap();
    assert_eq!(inventory.open[&segment(SEGMENT)].covered(), 80_000);
    assert!(inventory.segments.is_empty());

    // Another timeline's pieces are another segment's.
    let other = segment("00000002000000000000000A");
    let piece = piece_of(other, &[1; 100_000], 80_000, 100_000);
    writer.store_wal_piece(&piece).await.unwrap();
    assert_eq!(assembled(&reader).await, raw[..80_000]);
    assert_eq!(reader.assemble_segment(other).await.unwrap(), None);

    // The same range with other bytes is refused; another range with other bytes ends what is put together.
    let mut rewritten = raw.clone();
    rewritten[75_000] ^= 1;
    let piece = piece_of(segment(SEGMENT), &rewritten, 500, 80_000);
    let refused = writer.store_wal_piece(&piece).await.unwrap_err();
    assert!(matches!(refused, RepositoryError::Conflict { .. }), "{refused:?}");
    put(&writer, &rewritten, 69_000, 95_000).await;
    assert_eq!(assembled(&reader).await, raw[..75_000]);
    // The writer takes away what is not the server's any more.
    let old = WalPiece { start: 500, end: 80_000 };
    writer.delete_wal_piece(segment(SEGMENT), old, Sealing::Age).await.unwrap();
    assert_eq!(
        assembled(&reader).await,
        rewritten[..80_000].iter().chain(&rewritten[80_000..95_000]).copied().collect::<Vec<_>>()
    );

    // Once the segment is there, pieces count no more.
    let name = WalFileName::Segment(segment(SEGMENT));
    writer.store_wal_file(&PreparedWalFile::prepare(name, &raw, 1, 1).unwrap()).await.unwrap();
    let inventory = reader.wal_inventory().await.unwrap();
    assert!(inventory.segments.contains_key(&segment(SEGMENT)) && !inventory.open.contains_key(&segment(SEGMENT)));
}

#[tokio::test]
async fn a42_pieces_come_together_in_a_directory() {
    comes_together(Place::local()).await;
}

#[tokio::test]
async fn a42_pieces_come_together_in_s3() {
    comes_together(Place::s3s()).await;
}

#[tokio::test]
async fn a_damaged_piece_is_an_error_and_standard_tools_read_a_whole_one() {
    let place = Place::local();
    let options = place.options();
    let repository = open(&options);
    let raw = noise(8, 10_000);
    put(&repository, &raw, 0, 4000).await;
    let key = repository.keys().wal_piece(&segment(SEGMENT), WalPiece { start: 0, end: 4000 }, Sealing::Plain);
    assert!(
        key.as_str().ends_with("/wal/00000001/00000000/00000001000000000000000A.partial/00000000-00000FA0.zst"),
        "{key}"
    );
    let stored = repository.store().read(&key, 1 << 20).await.unwrap();
    let mut content = Vec::new();
    zstd::Decoder::new(&stored[..]).unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content, raw[..4000]);

    // A whole piece under the name of a longer one.
    let wrong = repository.keys().wal_piece(&segment(SEGMENT), WalPiece { start: 0, end: 5000 }, Sealing::Plain);
    repository.store().create(&wrong, stored.clone()).await.unwrap();
    let error = repository.assemble_segment(segment(SEGMENT)).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
    repository.store().delete(&wrong).await.unwrap();

    let mut damaged = stored.to_vec();
    let place = damaged.len() - 20;
    damaged[place] ^= 1;
    repository.store().delete(&key).await.unwrap();
    repository.store().create(&key, damaged.into()).await.unwrap();
    let error = repository.assemble_segment(segment(SEGMENT)).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Damaged { .. }), "{error:?}");
}
