-- What nginx cannot do by itself: listings in pages over both APIs, a limit, uploads, a count.
-- Keys are rec-0000000.json and so on, of one size in each store, so that a page can be computed;
-- the store `out` holds what was put into it.
local M = {}

local state = ngx.shared.state
local MADE, DATE = "2025-12-01T00:00:00.000Z", "2026-01-01T00:00:00.000Z"

-- Counts a request; with a limit, refuses those over it within one second.
function M.arrive(limit)
  state:incr("requests", 1, 0)
  if not limit then return end
  ngx.header["X-RateLimit-Limit"] = limit
  local second = math.floor(ngx.now())
  if state:incr("second:" .. second, 1, 0, 10) > limit then
    state:incr("refused", 1, 0)
    ngx.status = 429
    ngx.header.content_type = "application/json; charset=utf-8"
    ngx.print('{"error":{"type":"rate-limit-exceeded","message":"You have exceeded the rate limit of ' .. limit .. ' requests per second"}}')
    return ngx.exit(429)
  end
end

-- /__set answers the requests since the last call, and those refused; sets a store's records.
function M.set()
  local args = ngx.req.get_uri_args()
  ngx.print((state:get("requests") or 0) .. " " .. (state:get("refused") or 0))
  state:set("requests", 0)
  state:set("refused", 0)
  if args.store then
    state:set(args.store .. ":count", tonumber(args.count))
    state:set(args.store .. ":size", tonumber(args.size))
  end
  if args.empty then
    for _, name in ipairs(state:get_keys(0)) do
      if name:sub(1, 4) == "put:" then state:delete(name) end
    end
  end
end

-- Stores a body as a file of its store, in one step. Comes before `arrive` has been called.
function M.put(store, key, limit)
  M.arrive(limit)
  ngx.req.read_body()
  local body = ngx.req.get_body_data()
  local spooled = ngx.req.get_body_file()
  if not body and spooled then
    local file = io.open(spooled, "rb")
    body = file:read("*a")
    file:close()
  end
  local path = M.folder .. "/stores/" .. store .. "/" .. key
  local file = io.open(path .. ".part", "wb")
  file:write(body or "")
  file:close()
  os.rename(path .. ".part", path)
  state:set("put:" .. key, #(body or ""))
  state:set(store .. ":modified", os.date("!%Y-%m-%dT%H:%M:%S.000Z"))
  if ngx.var.uri:sub(1, 4) == "/v2/" then
    ngx.status = 201
    ngx.header.content_type = "application/json; charset=utf-8"
    ngx.print("{}")
  else
    ngx.header.etag = string.format('"%s"', ngx.md5(body or ""))
    ngx.status = 200
    ngx.print("")
  end
  return ngx.exit(ngx.status)
end

local function key(n) return string.format("rec-%07d.json", n) end

-- The first record with a key greater than `after`.
local function first(after, count)
  if not after or after == "" then return 0 end
  local low, high = 0, count
  while low < high do
    local middle = math.floor((low + high) / 2)
    if key(middle) > after then high = middle else low = middle + 1 end
  end
  return low
end

-- A page of what was put.
local function written(after, prefix, limit)
  local keys = {}
  for _, name in ipairs(state:get_keys(0)) do
    local key = name:match("^put:(.*)")
    if key and key:sub(1, #prefix) == prefix and key > (after or "") then keys[#keys + 1] = key end
  end
  table.sort(keys)
  local more = #keys > limit
  while #keys > limit do keys[#keys] = nil end
  return keys, function(key) return state:get("put:" .. key) end, more
end

local function page(after, prefix, limit)
  local store = ngx.var.store
  local count, size = state:get(store .. ":count"), state:get(store .. ":size")
  if not count then return nil end
  if store == "out" then return written(after, prefix, limit) end
  local keys, n, more = {}, first(after, count), false
  while n < count do
    local name = key(n)
    if name:sub(1, #prefix) == prefix then
      if #keys == limit then
        more = true
        break
      end
      keys[#keys + 1] = name
    elseif name > prefix then
      break
    end
    n = n + 1
  end
  return keys, size, more
end

local function not_found()
  ngx.status = 404
  ngx.header.content_type = "application/json"
  ngx.print('{"error":{"type":"record-not-found","message":"Store was not found."}}')
end

local function json(text)
  ngx.header.content_type = "application/json; charset=utf-8"
  ngx.header.content_length = #text
  ngx.print(text)
end

function M.store()
  local store = ngx.var.store
  if not state:get(store .. ":count") then return not_found() end
  local modified = state:get(store .. ":modified") or DATE
  json(string.format(
    '{"data":{"id":"%s","name":"%s","userId":"bench","createdAt":"%s","modifiedAt":"%s","accessedAt":"%s"}}',
    store, store, MADE, modified, modified))
end

function M.platform()
  local args = ngx.req.get_uri_args()
  local limit = math.min(tonumber(args.limit) or 1000, 1000)
  local after = args.exclusiveStartKey
  local keys, size, more = page(after, args.prefix or "", limit)
  if not keys then return not_found() end
  local items = {}
  for n, name in ipairs(keys) do
    items[n] = string.format('{"key":"%s","size":%d}', name, type(size) == "function" and size(name) or size)
  end
  json(string.format(
    '{"data":{"items":[%s],"count":%d,"limit":%d,"exclusiveStartKey":%s,"isTruncated":%s,"nextExclusiveStartKey":%s}}',
    table.concat(items, ","), #keys, limit, after and '"' .. after .. '"' or "null", tostring(more),
    more and '"' .. keys[#keys] .. '"' or "null"))
end

function M.s3()
  local args = ngx.req.get_uri_args()
  if ngx.req.get_method() == "HEAD" then return ngx.exit(200) end
  if args.location then
    ngx.header.content_type = "application/xml"
    return ngx.print('<LocationConstraint xmlns="http://s3.amazonaws.com/doc/2006-03-01/"/>')
  end
  local limit = math.min(tonumber(args["max-keys"]) or 1000, 1000)
  local prefix = type(args.prefix) == "string" and args.prefix or ""
  local after = args["continuation-token"] or args["start-after"] or args.marker
  local keys, size, more = page(type(after) == "string" and after or nil, prefix, limit)
  if not keys then return ngx.exit(404) end
  local items = {}
  for n, name in ipairs(keys) do
    items[n] = string.format(
      '<Contents><Key>%s</Key><LastModified>%s</LastModified><ETag>&quot;%d-1&quot;</ETag><Size>%d</Size><StorageClass>STANDARD</StorageClass></Contents>',
      name, DATE, n, type(size) == "function" and size(name) or size)
  end
  local last = keys[#keys] or ""
  local text = string.format(
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>%s</Name><Prefix>%s</Prefix><KeyCount>%d</KeyCount><MaxKeys>%d</MaxKeys><IsTruncated>%s</IsTruncated>%s%s</ListBucketResult>',
    ngx.var.store, prefix, #keys, limit, tostring(more),
    more and "<NextContinuationToken>" .. last .. "</NextContinuationToken><NextMarker>" .. last .. "</NextMarker>" or "",
    table.concat(items))
  ngx.header.content_type = "application/xml"
  ngx.header.content_length = #text
  ngx.print(text)
end

return M
