// Statements to instructions: names to registers and addresses, opcodes to what executes them.

#include "decode.h"

#include <cstring>

#include "arithmetic.h"
#include "numbers.h"

namespace software_gpu {

std::vector<std::string_view> parts_of(std::string_view opcode) {
    std::vector<std::string_view> parts;
    for (size_t at = 0; at <= opcode.size();) {
        size_t dot = std::min(opcode.find('.', at), opcode.size());
        parts.push_back(opcode.substr(at, dot - at));
        at = dot + 1;
    }
    return parts;
}

bool Decoder::has(std::string_view part) const {
    for (auto one : parts)
        if (one == part) return true;
    return false;
}

bool Decoder::fail(const std::string& what) {
    if (error.empty())
        error = function.name + ": line " + std::to_string(statement->line) + ": " + statement->opcode + ": " + what;
    return false;
}

Operand Decoder::constant(uint8_t bytes, uint64_t value) {
    if (bytes == 1) value = value != 0;
    else if (bytes < 8) value &= (uint64_t(1) << (8 * bytes)) - 1;
    auto [place, added] = constants.try_emplace({bytes, value}, Operand{bytes, function.registers[bytes]});
    if (added) {
        function.registers[bytes]++;
        function.constants.push_back({place->second, value});
    }
    return place->second;
}

bool Decoder::special(std::string_view name, Operand& found) {
    static const std::map<std::string_view, Special> known = {
        {"%tid.x", Special::tid_x}, {"%tid.y", Special::tid_y}, {"%tid.z", Special::tid_z},
        {"%ntid.x", Special::ntid_x}, {"%ntid.y", Special::ntid_y}, {"%ntid.z", Special::ntid_z},
        {"%ctaid.x", Special::ctaid_x}, {"%ctaid.y", Special::ctaid_y}, {"%ctaid.z", Special::ctaid_z},
        {"%nctaid.x", Special::nctaid_x}, {"%nctaid.y", Special::nctaid_y}, {"%nctaid.z", Special::nctaid_z},
        {"%laneid", Special::laneid}, {"%warpid", Special::warpid}, {"%nwarpid", Special::nwarpid},
        {"%lanemask_eq", Special::lanemask_eq}, {"%lanemask_lt", Special::lanemask_lt},
        {"%lanemask_le", Special::lanemask_le}, {"%lanemask_gt", Special::lanemask_gt},
        {"%lanemask_ge", Special::lanemask_ge},
    };  // fmt: skip
    auto place = known.find(name);
    if (place == known.end()) return false;
    for (auto& one : function.specials)
        if (one.special == place->second) return found = one.at, true;
    found = {4, function.registers[4]++};
    function.specials.push_back({place->second, found});
    return true;
}

bool Decoder::symbol(std::string_view name, uint64_t& address, Space& space) {
    if (auto shared = shared_variables.find(name); shared != shared_variables.end())
        return address = shared->second, space = Space::shared, true;
    if (auto local = local_variables.find(name); local != local_variables.end())
        return address = local->second, space = Space::local, true;
    for (auto& table : module.tables)
        if (table.name == name)
            return address = reinterpret_cast<uint64_t>(table.content.get()), space = Space::global, true;
    return false;
}

bool Decoder::source(const OperandText& text, uint8_t bytes, Operand& made) {
    if (text.negated) return fail("operand !" + text.text + ": only guards are negated");
    if (text.kind == OperandText::register_) return made = {text.bytes, text.index}, true;
    if (text.kind == OperandText::number) {
        uint64_t value = text.value;
        if (text.bytes == 8 && bytes == 4) {
            double wide;
            std::memcpy(&wide, &value, 8);
            auto narrow = float(wide);
            value = 0;
            std::memcpy(&value, &narrow, 4);
        } else if (text.bytes == 4 && bytes == 8) {
            float narrow;
            std::memcpy(&narrow, &value, 4);
            double wide = narrow;
            std::memcpy(&value, &wide, 8);
        }
        return made = constant(bytes, value), true;
    }
    if (text.kind == OperandText::name) {
        if (special(text.text, made)) return true;
        uint64_t address;
        Space space;
        if (symbol(text.text, address, space)) return made = constant(bytes, address), true;
        return fail("'" + text.text + "' is not declared");
    }
    return fail("an operand is a register, a number or a name");
}

bool Decoder::destination(const OperandText& text, Operand& made) {
    if (text.kind == OperandText::nothing) return made = {}, true;
    if (text.kind != OperandText::register_ || text.negated) return fail("a result is a register");
    return made = {text.bytes, text.index}, true;
}

bool Decoder::list(const OperandText& text, uint8_t bytes, bool results, std::vector<Operand>& into) {
    bool many = text.kind == OperandText::vector;
    for (size_t i = 0; i < (many ? text.parts.size() : 1); i++) {
        const OperandText& one = many ? text.parts[i] : text;
        if (!(results ? destination(one, into.emplace_back()) : source(one, bytes, into.emplace_back()))) return false;
    }
    return true;
}

bool Decoder::address(const OperandText& text, Operand& base, int64_t& offset, Space space) {
    if (text.kind != OperandText::address) return fail("expected an address in brackets");
    offset = int64_t(text.value);
    if (text.parts.empty()) return fail("an address begins with a register or a variable");
    const OperandText& part = text.parts[0];
    uint8_t bytes = space == Space::global ? 8 : 4;
    if (part.kind == OperandText::name) {
        uint64_t start;
        Space found;
        if (!symbol(part.text, start, found)) return fail("'" + part.text + "' is not declared");
        if (found != space) return fail("'" + part.text + "' lies in another memory");
        return base = constant(bytes, start), true;
    }
    return source(part, bytes, base);
}

bool Decoder::elementwise(const Operation* operation, size_t skipped) {
    auto& texts = statement->operands;
    made.kind = Kind::elementwise;
    made.operation = operation;
    bool carries = operation->outs == 2;
    size_t written = texts.size() - skipped;
    size_t wanted = operation->ins + 1 - (carries && operation->in_bytes[operation->ins - 1] == 1);
    if (written != wanted)
        return fail(std::to_string(written) + " operands, expected " + std::to_string(wanted));
    if (texts[0].kind == OperandText::pair) {
        if (parts[0] != "setp") return fail("two results");
        made.second_is_not = true;
        made.out.resize(2);
        if (!destination(texts[0].parts[0], made.out[0]) || !destination(texts[0].parts[1], made.out[1])) return false;
    } else if (!destination(texts[0], made.out.emplace_back())) {
        return false;
    }
    for (size_t i = 1; i < written; i++)
        if (!source(texts[i], operation->in_bytes[i - 1], made.in.emplace_back())) return false;
    if (carries) {
        made.out.push_back({1, carry()});
        if (made.in.size() < operation->ins) made.in.push_back({1, carry()});
    }
    for (size_t i = 0; i < made.in.size(); i++)
        if ((made.in[i].bytes == 1) != (operation->in_bytes[i] == 1)) return fail("a predicate in the wrong place");
    if (made.out[0].bytes && (made.out[0].bytes == 1) != (operation->out_bytes[0] == 1))
        return fail("a predicate in the wrong place");
    if (parts[0] != "cvt") {  // there alone a register may be wider than the type
        for (size_t i = 0; i < made.in.size(); i++)
            if (made.in[i].bytes != operation->in_bytes[i]) return fail("a register of another width");
        if (made.out[0].bytes && made.out[0].bytes != operation->out_bytes[0])
            return fail("a register of another width");
    }
    return true;
}

bool Decoder::packing() {  // mov.b64 %rd, {%r1, %r2} and back
    auto& texts = statement->operands;
    uint8_t bytes = parts[1] == "b64" ? 8 : parts[1] == "b32" ? 4 : 0;
    bool unpacks = texts[0].kind == OperandText::vector;
    auto& pieces = unpacks ? texts[0].parts : texts[1].parts;
    if (!bytes || texts.size() != 2 || pieces.empty() || bytes % pieces.size()) return fail("a vector of this type");
    made.kind = unpacks ? Kind::unpack : Kind::pack;
    made.element = uint8_t(bytes / pieces.size());
    if (!list(texts[0], 0, true, made.out) || !list(texts[1], unpacks ? bytes : made.element, false, made.in))
        return false;
    for (auto& one : unpacks ? made.out : made.in)
        if (one.bytes && one.bytes != made.element) return fail("a register of another width");
    if ((unpacks ? made.in : made.out)[0].bytes != bytes) return fail("a register of another width");
    return made.element > 1 || fail("a vector of bytes");
}

bool Decoder::decode(const StatementText& given, Instruction& into) {
    statement = &given;
    made = {};
    made.line = given.line;
    made.opcode = given.opcode;
    parts = parts_of(given.opcode);
    if (!given.guard.empty()) {
        auto& guard = given.guard[0];
        if (guard.kind != OperandText::register_ || guard.bytes != 1) return fail("a guard is a predicate");
        made.guarded = true;
        made.guard = guard.index;
        made.guard_negated = guard.negated;
    }
    auto& texts = given.operands;
    bool known = true;
    if (parts[0] == "mov" && texts.size() == 2 &&
        (texts[0].kind == OperandText::vector || texts[1].kind == OperandText::vector)) {
        known = packing();
    } else if (auto* number = find_number(given.opcode); number && !texts.empty()) {
        known = elementwise(number);
    } else if (auto* arithmetic = find_arithmetic(given.opcode); arithmetic && !texts.empty()) {
        known = elementwise(arithmetic);
    } else if (!other_instruction()) {
        known = fail("unknown instruction");
    }
    made.takes_warps = made.kind == Kind::shuffle || made.kind == Kind::vote || made.kind == Kind::reduce ||
                       made.kind == Kind::mma || made.kind == Kind::move_matrices || made.kind == Kind::wgmma ||
                       made.kind == Kind::warp_barrier;
    into = std::move(made);
    return known && error.empty();
}

}  // namespace software_gpu
