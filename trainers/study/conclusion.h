// One paragraph: what the runs of a study tell, and what they cannot.
#pragma once

#include <string>
#include <vector>

#include "trainers/study/study_report.h"
#include "weft/trainers/statistics.h"

namespace weft::study {

// `differences`: of the first metric, of every arm but the baseline in their order.
std::string conclusion_of(const StudyData& data, const std::vector<Difference>& differences);

}  // namespace weft::study
