"""From records to answers: predictors, fits, rankings, forecasts, the paper's tables and its claims."""
