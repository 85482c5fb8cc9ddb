// A module: its variables get their places, its functions are decoded.

#include <algorithm>
#include <cstring>
#include <set>

#include "decode.h"
#include "definitions.h"

namespace software_gpu {

const Function* Module::find(std::string_view name) const {
    for (auto& one : functions)
        if (one->name == name) return one.get();
    return nullptr;
}

namespace {

// What wgmma reads and adds to must not be touched by others but before a fence.
void mark_wgmma_registers(std::vector<Instruction>& code) {
    std::set<uint32_t> used;
    for (auto& one : code) {
        if (one.kind != Kind::wgmma) continue;
        for (auto* operands : {&one.out, &one.in})
            for (auto& operand : *operands)
                if (operand.bytes == 4) used.insert(operand.index);
    }
    for (auto& one : code)
        for (auto& out : one.out)
            one.feeds_wgmma |= one.kind != Kind::wgmma && out.bytes == 4 && used.count(out.index);
}

}  // namespace

uint32_t Decoder::carry() {
    if (!has_carry) carry_register = function.registers[1]++;
    has_carry = true;
    return carry_register;
}

void Decoder::place_variables(const std::vector<VariableText>& variables) {
    for (auto& one : variables) {
        if (one.external || (one.space != ".shared" && one.space != ".local")) continue;
        bool shared = one.space == ".shared";
        uint32_t& end = shared ? function.static_shared : function.local_bytes;
        end = (end + one.alignment - 1) / one.alignment * one.alignment;
        (shared ? shared_variables : local_variables)[one.name] = end;
        end += uint32_t(one.bytes);
    }
}

bool Decoder::run(const std::vector<VariableText>& module_variables) {
    function.name = text.name;
    function.required_threads = text.required_threads;
    function.parameters = text.parameters;
    const std::vector<std::string>* names[] = {
        &text.predicates, &text.registers16, &text.registers32, &text.registers64};
    for (int i = 0; i < 4; i++) {
        function.registers[uint8_t(1 << i)] = uint32_t(names[i]->size());
        function.names[1 << i] = *names[i];
    }
    place_variables(text.variables);
    place_variables(module_variables);
    function.static_shared = (function.static_shared + 15) / 16 * 16;
    for (auto& one : module_variables) {
        if (!one.external || one.space != ".shared") continue;
        shared_variables[one.name] = function.static_shared;
        function.uses_dynamic_shared = true;
    }
    uint32_t place = 0;
    for (auto& one : text.statements) {
        if (one.label.empty()) place++;
        else labels[one.label] = place;
    }
    for (auto& one : text.statements) {
        if (!one.label.empty()) continue;
        Instruction decoded;
        if (!decode(one, decoded)) return false;
        function.instructions.push_back(std::move(decoded));
    }
    Instruction end;  // a function may end without `ret`, and a label stand behind its last instruction
    end.kind = Kind::exit;
    end.opcode = "ret";
    function.instructions.push_back(end);
    mark_wgmma_registers(function.instructions);
    find_definitions(function);
    return true;
}

std::unique_ptr<Module> load(std::string_view ptx, std::string& error) {
    ModuleText text;
    if (!parse(ptx, text, error)) return nullptr;
    auto module = std::make_unique<Module>();
    module->target = text.target;
    for (auto& one : text.variables) {
        if (one.space != ".global" && one.space != ".const") continue;
        auto* content = static_cast<uint8_t*>(std::aligned_alloc(256, (one.bytes + 255) / 256 * 256 + 256));
        std::memset(content, 0, one.bytes);
        std::copy(one.content.begin(), one.content.end(), content);
        module->tables.push_back({one.name, std::unique_ptr<uint8_t, Free>(content), one.bytes});
    }
    for (auto& one : text.functions) {
        auto& function = module->functions.emplace_back(std::make_unique<Function>());
        if (!Decoder(*module, one, *function, error).run(text.variables)) return nullptr;
    }
    return module;
}

}  // namespace software_gpu
