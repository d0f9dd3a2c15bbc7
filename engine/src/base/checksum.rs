//! CRC-32 (IEEE 802.3), the checksum of everything the engine writes. 32 bits guard units of 4 KiB to a few
//! MiB; they are no identity.

/// CRC-32 of `bytes`.
pub fn crc32(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// CRC-32 of `bytes`, starting from `seed` instead of 0: the checksum then also depends on the seed.
pub fn crc32_seeded(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}
