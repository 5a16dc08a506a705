// Reads a disk as Xen Orchestra does, in three ways, and compares it with a file.
//
// Usage: node client.mjs ADDRESS PORT EXPORT FILE [sparse], where the map must show holes

import assert from 'node:assert/strict'
import { readFile } from 'node:fs/promises'
import NbdClient from '@vates/nbd-client'
import MultiNbdClient from '@vates/nbd-client/multi.mjs'
import { NbdDisk } from '@vates/nbd-client/NbdDisk.mjs'

const [address, port, exportname, file, holes] = process.argv.slice(2)
const settings = { address, port: Number(port), exportname }
const wanted = await readFile(file)

function same(data, at, what) {
  assert.ok(data.equals(wanted.subarray(at, at + data.length)), `${what}: bytes at ${at} differ`)
}

// One connection: block by block, the last one short, and many at once.
async function one(size) {
  const client = new NbdClient(settings, { readBlockRetries: 1 })
  await client.connect()
  assert.equal(client.exportSize, BigInt(wanted.length))
  const count = Math.ceil(wanted.length / size)
  const indexes = Array.from({ length: count }, (_, index) => index)
  for (const index of indexes.slice(0, 5).concat(indexes.slice(-2))) {
    same(await client.readBlock(index, size), index * size, 'one connection')
  }
  const blocks = await Promise.all(indexes.map(index => client.readBlock(index, size)))
  blocks.forEach((data, index) => same(data, index * size, 'all at once'))
  assert.equal(
    blocks.reduce((sum, data) => sum + data.length, 0),
    wanted.length
  )
  await client.disconnect()
}

// Eight connections with blocks read ahead, as a backup does.
async function many(size) {
  const client = new MultiNbdClient(settings, { nbdConcurrency: 8, readAhead: 16, readBlockRetries: 1 })
  await client.connect()
  function* indexes() {
    for (let index = 0; index * size < wanted.length; index++) {
      yield { index, size }
    }
  }
  let at = 0
  for await (const data of client.readBlocks(indexes)) {
    same(data, at, 'eight connections')
    at += data.length
  }
  assert.equal(at, wanted.length)
  await client.disconnect()
}

// The disk with its map: what the map leaves out is zero.
async function sparse(size) {
  const disk = new NbdDisk(settings, size)
  await disk.init()
  assert.equal(disk.getVirtualSize(), wanted.length)
  let skipped = 0
  for (let index = 0; index * size < wanted.length; index++) {
    const piece = wanted.subarray(index * size, (index + 1) * size)
    if (disk.hasBlock(index)) {
      const { data } = await disk.readBlock(index)
      same(data.subarray(0, piece.length), index * size, 'by the map')
    } else {
      assert.ok(piece.every(byte => byte === 0), `block ${index} is data, and no hole`)
      skipped++
    }
  }
  assert.ok(skipped > 0 || holes !== 'sparse', 'the map shows no holes at all')
  await disk.close()
  return skipped
}

for (const size of [64 * 1024, 2 * 1024 * 1024]) {
  await one(size)
  await many(size)
}
console.log(`same bytes, ${await sparse(2 * 1024 * 1024)} blocks of 2 MiB left out by the map`)
