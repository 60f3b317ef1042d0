-- For wrk: random ranges of one file, every byte of every answer compared with the file.
-- Arguments: the file. The last line it prints is "checked N wrong N errors N".
local threads = {}

function setup(thread)
    thread:set("seed", #threads + 1)
    table.insert(threads, thread)
end

function init(arguments)
    local file = assert(io.open(arguments[1], "rb"))
    content = file:read("*a")
    file:close()
    checked, wrong, example = 0, 0, ""
    math.randomseed(seed)
end

function request()
    local first = math.random(0, #content - 1)
    local last = math.min(#content - 1, first + math.random(0, 2 ^ math.random(0, 18)))
    return wrk.format("GET", nil, { Range = string.format("bytes=%d-%d", first, last) })
end

function response(status, headers, body)
    checked = checked + 1
    local first, last, size = (headers["Content-Range"] or ""):match("^bytes (%d+)-(%d+)/(%d+)$")
    if status == 206 and first and tonumber(size) == #content and body == content:sub(first + 1, last + 1) then
        return
    end
    wrong = wrong + 1
    example = string.format("%d %s, %d bytes", status, headers["Content-Range"] or "no Content-Range", #body)
end

function done(summary)
    local total, bad = 0, 0
    for _, thread in ipairs(threads) do
        total = total + thread:get("checked")
        bad = bad + thread:get("wrong")
        if thread:get("example") ~= "" then print("wrong: " .. thread:get("example")) end
    end
    local errors = summary.errors
    local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
    print(string.format("checked %d wrong %d errors %d", total, bad, failed))
end
